"""Which module a LoRA's layer is for: layers have diffusers' names or the original code's, with underscores for dots.

U-Nets of diffusers have `down_blocks.0.attentions.0`, those of the original code, which WebUIs have, `input_blocks.1.1`.
Layers of CLIP are named as in transformers; OpenCLIP has one module for its query, key and value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import nn

_RESNET = {
    "norm1": "in_layers_0",
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "norm2": "out_layers_0",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
_TOP = {
    "conv_in": "input_blocks_0_0",
    "conv_norm_out": "out_0",
    "conv_out": "out_2",
    "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2",
    "add_embedding_linear_1": "label_emb_0_0",
    "add_embedding_linear_2": "label_emb_0_2",
}
_LEVEL = re.compile(r"(?P<side>down|up)_blocks_(?P<level>\d+)_(?P<kind>attentions|resnets)_(?P<number>\d+)_(?P<rest>.+)")
_MIDDLE = re.compile(r"mid_block_(?P<kind>attentions|resnets)_(?P<number>\d+)_(?P<rest>.+)")
_RESIZE = re.compile(r"(?:down_blocks_(?P<down>\d+)_downsamplers|up_blocks_(?P<up>\d+)_upsamplers)_0_conv")
_TEXT_LAYER = re.compile(r"(?:.*_)?(?:encoder_layers|resblocks)_(?P<number>\d+)_(?P<part>.+)")
_OPEN_CLIP = {"mlp_c_fc": "mlp_fc1", "mlp_c_proj": "mlp_fc2"}
_PROJECTIONS = ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj")


class Target(NamedTuple):
    """A module that a layer changes; of a module for attention, the part `projection`: 0 query, 1 key, 2 value, 3 output."""

    module: Any
    projection: int | None = None


def unet_targets(unet: nn.Module) -> dict[str, Target]:
    """The modules of a U-Net by all their names."""
    named = {name.replace(".", "_"): Target(module) for name, module in unet.named_modules() if name}
    if "input_blocks_0_0" in named:
        return named
    layers = sum(bool(re.fullmatch(r"down_blocks_0_resnets_\d+", name)) for name in named)
    aliases = {alias: target for name, target in named.items() for alias in original_names(name, layers)}
    return aliases | named


def unet_target(targets: dict[str, Target], name: str) -> Target | None:
    """The module for a layer's name in either scheme."""
    if name in targets or "input_blocks_0_0" not in targets:
        return targets.get(name)
    resizes = (int(match[1]) for each in targets if (match := re.fullmatch(r"input_blocks_(\d+)_0_op", each)))
    layers = min(resizes, default=3) - 1
    return next((targets[each] for each in original_names(name, layers) if each in targets), None)


def original_names(name: str, layers: int) -> Iterator[str]:
    """What diffusers' name of a module of the U-Net is in the original code; `layers` are the residual blocks of a level.

    Upsampling is the last part of a block, which has attention before it or not: both names are given.
    """
    per_level = layers + 1  # down: the residual blocks and downsampling; up: one residual block more
    if name in _TOP:
        yield _TOP[name]
    elif match := _RESIZE.fullmatch(name):
        if match["down"] is not None:
            yield f"input_blocks_{(int(match['down']) + 1) * per_level}_0_op"
        else:
            block = (int(match["up"]) + 1) * per_level - 1
            yield from (f"output_blocks_{block}_{part}_conv" for part in (1, 2))
    elif match := _LEVEL.fullmatch(name):
        block = int(match["level"]) * per_level + int(match["number"])
        start = f"input_blocks_{block + 1}" if match["side"] == "down" else f"output_blocks_{block}"
        yield from _within(start, match["kind"], match["rest"], ("0", "1"))
    elif match := _MIDDLE.fullmatch(name):
        number = int(match["number"]) * 2
        yield from _within("middle_block", match["kind"], match["rest"], (str(number), str(number + 1)))


def _within(start: str, kind: str, rest: str, parts: tuple[str, str]) -> Iterator[str]:
    if kind == "attentions":
        yield f"{start}_{parts[1]}_{rest}"
    elif rest in _RESNET:
        yield f"{start}_{parts[0]}_{_RESNET[rest]}"


def text_targets(named_modules: Iterable[tuple[str, nn.Module]]) -> dict[str, Target]:
    """The modules of a text encoder's layers, by what `text_name` makes of a layer's name."""
    found: dict[str, Target] = {}
    for dotted, module in named_modules:
        match = _TEXT_LAYER.fullmatch(dotted.replace(".", "_"))
        if match is None or "visual" in dotted:
            continue
        number, part = match["number"], match["part"]
        if isinstance(module, nn.MultiheadAttention):
            names = (*_PROJECTIONS, "self_attn_out_proj")
            found |= {f"{number}_{name}": Target(module, place) for place, name in enumerate(names)}
        elif part != "attn_out_proj":  # whose weight only the module for attention uses
            found[f"{number}_{_OPEN_CLIP.get(part, part)}"] = Target(module)
    return found


def text_name(name: str) -> str:
    """The number and part of a text encoder's layer, such as `0_mlp_fc1`; the name itself if it is none."""
    match = _TEXT_LAYER.fullmatch(name)
    return f"{match['number']}_{match['part']}" if match else name
