"""LoRA files: .safetensors with kohya's names of tensors, or those of diffusers and PEFT.

Layers have the tensors `lora_down` and `lora_up` (PEFT: `lora_A`, `lora_B`) and perhaps `alpha`; their scale is alpha by
rank. Relatives that change weights otherwise, such as LoHa, LoKr and DoRA, are refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ti_trainer.errors import ConfigError, EmbeddingFormatError
from ti_trainer.files import short_hash
from ti_trainer.formats import checks, recognition, safetensors_file
from ti_trainer.formats.bundles import PREFIX
from ti_trainer.formats.checks import Array
from ti_trainer.formats.tensor_names import spec_of
from ti_trainer.lora import NETWORKS, TEXT_ENCODER, TEXT_ENCODER_2, Lora, LoraLayer

_KOHYA = re.compile(r"lora_(?P<network>unet|te1?|te2)_(?P<layer>[^.]+)\.(?P<part>.+)")
_DIFFUSERS = re.compile(r"(?P<network>unet|text_encoder(?:_2)?)\.(?P<layer>.+?)\.(?P<part>(?:lora|alpha|processor\.to_).*)")
_PROCESSOR = re.compile(r"processor\.(?P<layer>to_(?:q|k|v|out))_lora\.(?P<part>.+)")  # by older versions of diffusers
_NETWORKS = {"te": TEXT_ENCODER, "te1": TEXT_ENCODER, "te2": TEXT_ENCODER_2}
_DOWN = ("lora_down", "lora_A", "lora_A.default", "lora.down", "lora_linear_layer.down", "down")
_UP = ("lora_up", "lora_B", "lora_B.default", "lora.up", "lora_linear_layer.up", "up")
_PARTS = {"alpha": "alpha"} | {f"{each}.weight": "down" for each in _DOWN} | {f"{each}.weight": "up" for each in _UP}
_RELATIVES = tuple(
    (re.compile(pattern), what)
    for pattern, what in (
        (r"\.(dora_scale|lora_magnitude_vector)\b", "a DoRA"),
        (r"\.hada_[wt]", "a LoHa"),
        (r"\.lokr_", "a LoKr"),
        (r"\.b?oft_", "an OFT"),
        (r"\.on_input$", "an IA3"),
        (r"\.[ab][12]\.weight$", "a GLoRA"),
        (r"\.lora_mid\b", "a LoRA with a Tucker decomposition of convolutions (lora_mid)"),
        (r"\.lora_embedding_[AB]\b", "a LoRA of token embeddings"),
        (r"\.([wb]_norm|diff|diff_b)$", "a LyCORIS with whole weights (norm or diff)"),
    )
)
_METADATA = "lora_adapter_metadata"  # of diffusers: JSON with rank and alpha by network
_MAX_RANK = 4096
_MAX_COMMAS = 1_000_000  # in the metadata


def read_lora(path: Path) -> Lora:
    """The LoRA in a .safetensors file; ConfigError, for the option `teacher_lora`, if it is none or cannot be used."""
    try:
        checks.refuse_missing(path)
        with path.open("rb") as file, checks.explained(path, "a LoRA"):
            return _read(file, path)
    except (EmbeddingFormatError, OSError) as error:
        reason = str(error).replace("Choose an embedding.", "Choose a LoRA.")
        message = f"LoRA (teacher_lora): {reason}"
        raise ConfigError(message, "teacher_lora") from error


def _read(file: BinaryIO, path: Path) -> Lora:
    size = path.stat().st_size
    head = file.read(recognition.HEAD)
    kind = recognition.format_of(head, size)
    if kind != "safetensors":
        what = recognition.stranger(head, size) or "is not a .safetensors file. Choose a LoRA."
        if kind in ("zip", "pickle"):
            what = "is a pickle, which can contain programs. Convert it to .safetensors, or get it in this format."
        message = f"it {what}"
        raise EmbeddingFormatError(message)
    file.seek(0)
    start, tensors, metadata = safetensors_file.read_layout(file, size)
    found: dict[tuple[str, str], dict[str, Array]] = {}
    bundled: dict[str, None] = {}
    places = _places(tensors)
    _refuse_overlaps(tensors)
    for name, place in places.items():
        if place is None:
            bundled[name.removeprefix(PREFIX).split(".")[0]] = None
            continue
        network, layer, part = place
        first, last = tensors[name]["data_offsets"]
        file.seek(start + first)
        found.setdefault((network, layer), {})[part] = _finite(name, {**tensors[name], "data": file.read(last - first)})
    alphas = _alphas(metadata or {})
    layers = {key: _layer(key, parts, alphas) for key, parts in found.items()}
    return Lora(path.stem, layers, tuple(bundled), short_hash(path))


def _places(names: Iterable[str]) -> dict[str, tuple[str, str, str] | None]:
    """Network, layer and part of each tensor; None for those of bundled embeddings. EmbeddingFormatError for other files."""
    names = list(names)
    relative = next((what for pattern, what in _RELATIVES if any(map(pattern.search, names))), None)
    if relative is not None:
        message = f"it is {relative}, which is not supported: expected a LoRA of lora_up and lora_down. Choose another."
        raise EmbeddingFormatError(message)
    places: dict[str, tuple[str, str, str] | None] = {}
    for name in names:
        places[name] = None if name.startswith(PREFIX) else _place(name)
        if places[name] is None and not name.startswith(PREFIX):
            what = spec_of(names) or "not a LoRA"
            message = f"it is {what}, with the tensor {name[:80]!r}; expected a LoRA for Stable Diffusion. Choose another."
            raise EmbeddingFormatError(message)
    if not any(places.values()):
        message = "it has no layers of a LoRA. Choose another."
        raise EmbeddingFormatError(message)
    return places


def _place(name: str) -> tuple[str, str, str] | None:
    match = _KOHYA.fullmatch(name) or _DIFFUSERS.fullmatch(name)
    if match is None:
        return None
    network, layer, part = match["network"], match["layer"].replace(".", "_"), match["part"]
    if processor := _PROCESSOR.fullmatch(part):
        output = "_0" if processor["layer"] == "to_out" else ""
        layer, part = f"{layer}_{processor['layer']}{output}", processor["part"]
    elif part in ("down.weight", "up.weight"):
        return None
    if part not in _PARTS:
        return None
    return _NETWORKS.get(network, network), layer, _PARTS[part]


def _refuse_overlaps(tensors: Mapping[str, Mapping[str, Any]]) -> None:
    """EmbeddingFormatError if tensors share bytes: a small file could take any amount of memory."""
    end = 0
    for name, each in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = each["data_offsets"]
        if first < end:
            message = f"its tensor {name[:60]!r} overlaps another. Copy or download it again."
            raise EmbeddingFormatError(message)
        end = last


def _finite(name: str, described: Mapping[str, Any]) -> Array:
    """The numbers of a tensor; EmbeddingFormatError if they are no numbers or not finite."""
    numbers = safetensors_file.numbers_of(described)
    if numbers.dtype.kind not in "fiu" or not np.isfinite(numbers).all():
        message = f"its tensor {name[:80]!r} has numbers that are not finite: its training diverged. Choose another."
        raise EmbeddingFormatError(message)
    return numbers


def _layer(key: tuple[str, str], parts: Mapping[str, Array], alphas: Mapping[str, Mapping[str, Any]]) -> LoraLayer:
    """One layer of its tensors; EmbeddingFormatError if one is missing or they do not fit each other."""
    network, name = key
    down, up, alpha = (parts.get(part) for part in ("down", "up", "alpha"))
    if down is None or up is None:
        message = f"the layer {name[:80]!r} has no {'lora_down' if down is None else 'lora_up'}. Download it again."
        raise EmbeddingFormatError(message)
    shapes = tuple(down.shape), tuple(up.shape)
    fits = down.ndim in (2, 4) and up.ndim in (2, 4) and down.shape[0] == up.shape[1] and up.shape[2:] in ((), (1, 1))
    if not fits or not 1 <= down.shape[0] <= _MAX_RANK or down.dtype.kind != "f" or up.dtype.kind != "f":
        message = f"the layer {name[:80]!r} has tensors of the shapes {shapes[0]} and {shapes[1]}. Choose another."
        raise EmbeddingFormatError(message)
    if alpha is not None and alpha.size != 1:
        message = f"the layer {name[:80]!r} has an alpha of {alpha.size} numbers. Choose another."
        raise EmbeddingFormatError(message)
    rank = int(down.shape[0])
    scale = _stated(alphas.get(network, {}), name, rank) if alpha is None else float(alpha.reshape(-1)[0]) / rank
    return LoraLayer(down, up, scale)


def _alphas(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What diffusers' metadata says by network: `lora_alpha` and the like."""
    text = metadata.get(_METADATA, "")
    stated = checks.parsed(text.encode(), _MAX_COMMAS) if text else {}
    if not isinstance(stated, dict):
        return {}
    return {
        network: {key.removeprefix(f"{network}."): value for key, value in stated.items() if key.startswith(f"{network}.")}
        for network in NETWORKS
    }


def _stated(stated: Mapping[str, Any], name: str, rank: int) -> float:
    """A layer's scale by diffusers' metadata; 1 without any, as in diffusers."""
    alpha = stated.get("lora_alpha", rank)
    patterns = stated.get("alpha_pattern") or {}
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if f"_{name}".endswith("_" + str(pattern).replace(".", "_")):
            alpha = value
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        message = f"its metadata has the alpha {json.dumps(alpha)[:40]}, expected a number. Choose another."
        raise EmbeddingFormatError(message)
    return float(alpha) / (math.sqrt(rank) if stated.get("use_rslora") else rank)
