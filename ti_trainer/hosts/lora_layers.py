"""Adds a LoRA to the layers of a model, by forward hooks that are there only within `LoraLayers.added`.

No weight is changed, so this works with weights that are streamed, or kept in 8 bits. OpenCLIP's attention is one module
that multiplies with its weights itself: these are replaced by changed copies while it computes.

r rank of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ti_trainer.errors import ConfigError
from ti_trainer.hosts.lora_names import Target, text_name, text_targets, unet_target, unet_targets
from ti_trainer.lora import TEXT_ENCODER, TEXT_ENCODER_2, UNET, Lora, LoraLayer
from ti_trainer.model import ModelSpec
from ti_trainer.offload.manager import MemoryManager
from ti_trainer.offload.patching import patched
from ti_trainer.wording import counted

NamedModules = Callable[[], Iterable[tuple[str, nn.Module]]]


@dataclass(frozen=True)
class _Change:
    """A layer's change: down (r, inputs) or (r, inputs, height, width), and up (outputs, r) with the layer's scale in it."""

    target: Target
    down: Tensor
    up: Tensor

    def of_output(self, weight: float, module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """A forward hook: the output of a linear layer or convolution with the change."""
        x = inputs[0]
        down, up = (each.to(x.device, x.dtype) for each in (self.down, self.up))
        if down.ndim == 2:
            changed = F.linear(F.linear(x, down), up)
        else:
            within = F.conv2d(x, down, None, module.stride, module.padding, module.dilation)
            changed = F.conv2d(within, up[:, :, None, None])
        return torch.add(output, changed.to(output.dtype), alpha=weight)

    def of_weight(self) -> Tensor:
        """(outputs, inputs) float32, for a linear layer."""
        return self.up.float() @ self.down.float()


class TakesLoras:
    """A model of a host whose networks can compute with a LoRA."""

    memory: MemoryManager
    _lora_layers: LoraLayers

    def fit_lora(self, lora: Lora) -> str:
        """Find the layers that a LoRA changes."""
        return self._lora_layers.fit(lora)

    @contextmanager
    def with_lora(self, lora: Lora, weight: float) -> Iterator[None]:
        """Within it the networks compute with this LoRA, uncompiled: compiled code would leave it out."""
        with patched([(self.memory, "compiled", None)]), self._lora_layers.added(lora, weight):
            yield


@dataclass
class LoraLayers:
    """The layers of one model that LoRAs can change. A LoRA's tensors are on the device for as long as the LoRA is used.

    `text_encoders` give each encoder's modules by name.
    """

    unet: nn.Module
    text_encoders: Sequence[NamedModules]
    device: torch.device
    dtype: torch.dtype
    name: str
    spec: ModelSpec
    _changes: WeakKeyDictionary[Lora, Sequence[_Change]] = field(default_factory=WeakKeyDictionary, init=False)

    def fit(self, lora: Lora) -> str:
        """`DiffusionModel.fit_lora`."""
        targets = self._targets(lora)
        missing = [name for (_, name), target in targets.items() if target is None]
        if len(missing) == len(targets):
            message = (
                f"LoRA (teacher_lora): none of the {counted(len(targets), 'layer')} of {lora.name}, such as "
                f"{missing[0][:80]}, is in {self.name}: choose a LoRA for {self.spec.family}."
            )
            raise ConfigError(message, "teacher_lora")
        self._changes[lora] = [
            self._change(lora, name, lora.layers[network, name], target)
            for (network, name), target in targets.items()
            if target is not None
        ]
        notes = []
        if missing:
            found = f"{len(missing)} of the {counted(len(targets), 'layer')} of the LoRA {lora.name}"
            notes.append(f"{found}, such as {missing[0][:80]}, are not in this model and have no effect.")
        if lora.embeddings:
            named = ", ".join(each[:40] for each in lora.embeddings[:5])
            notes.append(f"The LoRA {lora.name} has embeddings in it ({named}), which are not used.")
        return " ".join(notes)

    @contextmanager
    def added(self, lora: Lora, weight: float) -> Iterator[None]:
        """`DiffusionModel.with_lora`."""
        if lora not in self._changes:
            self.fit(lora)
        merged: dict[nn.Module, list[_Change]] = {}
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for each in self._changes[lora]:
                module, projection = each.target
                if projection is None:
                    stack.callback(module.register_forward_hook(partial(each.of_output, weight)).remove)
                else:
                    merged.setdefault(module, []).append(each)
            forwards = [
                (module, "forward", partial(_with_weights, module, module.forward, changes, weight))
                for module, changes in merged.items()
            ]
            stack.enter_context(patched(forwards))
            yield

    def _targets(self, lora: Lora) -> dict[tuple[str, str], Target | None]:
        """The module of each layer; None where there is none."""
        of_unet = unet_targets(self.unet)
        of_text = dict(
            zip((TEXT_ENCODER, TEXT_ENCODER_2), (text_targets(each()) for each in self.text_encoders), strict=False)
        )
        return {
            (network, name): unet_target(of_unet, name) if network == UNET else of_text.get(network, {}).get(text_name(name))
            for network, name in lora.layers
        }

    def _change(self, lora: Lora, name: str, layer: LoraLayer, target: Target) -> _Change:
        """The tensors on the device, in the shape that the module needs; ConfigError if they do not fit it."""
        shape = _weight_shape(target)
        down, up = (torch.from_numpy(each.astype("float32")) for each in (layer.down, layer.up))
        wanted = (down.shape[0], *shape[1:])
        if up.shape[0] != shape[0] or down.shape[1] != shape[1] or down.numel() != torch.Size(wanted).numel():
            found = f"{up.shape[0]} x {' x '.join(map(str, down.shape[1:]))}"
            message = (
                f"LoRA (teacher_lora): the layer {name[:80]} of {lora.name} is for weights of {found}, expected "
                f"{' x '.join(map(str, shape))} as in {self.name}: choose a LoRA for {self.spec}."
            )
            raise ConfigError(message, "teacher_lora")
        up = up.flatten(1) * layer.scale  # (outputs, r)
        return _Change(target, down.reshape(wanted).to(self.device, self.dtype), up.to(self.device, self.dtype))


def _weight_shape(target: Target) -> tuple[int, ...]:
    """The shape of a module's weight, which may be elsewhere at the moment; empty for one without a weight matrix."""
    module = target.module
    if target.projection is not None:
        return module.embed_dim, module.embed_dim
    if hasattr(module, "in_features"):
        return module.out_features, module.in_features
    if hasattr(module, "kernel_size") and getattr(module, "groups", 1) == 1:
        return module.out_channels, module.in_channels, *module.kernel_size
    return (0, 0)


def _with_weights(
    module: Any, forward: Callable[..., Any], changes: Sequence[_Change], weight: float, *args: Any, **kwargs: Any
) -> Any:
    """The output of torch's attention with changed copies of its weights."""
    output, inputs = module.out_proj, module.in_proj_weight
    changed_inputs, changed_output = inputs.detach().clone(), output.weight.detach().clone()
    for each in changes:
        delta, projection = each.of_weight(), each.target.projection
        part = changed_output if projection == 3 else changed_inputs.chunk(3)[projection or 0]  # (width, width), a view
        part.add_(delta.to(part.device, part.dtype), alpha=weight)
    before = inputs, output.weight
    try:
        module._parameters["in_proj_weight"], output._parameters["weight"] = changed_inputs, changed_output
        return forward(*args, **kwargs)
    finally:
        module._parameters["in_proj_weight"], output._parameters["weight"] = before
