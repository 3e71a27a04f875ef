"""The MemoryManager of a loaded model: chooses a memory plan, applies it to the networks, and compiles the U-Net."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ti_trainer.model import Compile, MemoryMode
from ti_trainer.offload.checkpointing import Autocast, blocks_of
from ti_trainer.offload.compiling import NO_MEMORY, CompiledNetwork, compile_network, failure
from ti_trainer.offload.patching import moved_to
from ti_trainer.offload.plan import (
    PLANS,
    MemoryNeed,
    MemoryPlan,
    bytes_of,
    choose_plan,
    estimate,
    free_bytes,
    ran_out,
)
from ti_trainer.offload.streaming import CPU, BlockOffloader


@dataclass(frozen=True)
class Networks:
    """A model's networks, and how its host computes with them.

    `dtype` is that of the U-Net's activations. `host_offloads_weights`: the host itself moves networks to the device when
    they are used and away again, as the WebUI with --medvram; `host_offloads_vae`: it does so with the VAE.
    `start_in_ram`: the networks were loaded to RAM, and the MemoryManager moves them to the device once it has a plan.
    """

    unet: nn.Module
    text_encoders: tuple[nn.Module, ...]
    vae: nn.Module
    family: str
    device: torch.device
    dtype: torch.dtype
    autocast: Autocast | None = None
    host_offloads_weights: bool = False
    host_offloads_vae: bool = False
    start_in_ram: bool = False


class MemoryManager:
    """Makes the training steps of one model fit into GPU memory. On other devices only a chosen plan is applied.

    A plan acts on the networks between `activate` and `deactivate`; while inactive it is only remembered.
    """

    def __init__(self, networks: Networks) -> None:
        """Inactive, with no measures."""
        self.networks, self.plan, self.decodes = networks, MemoryPlan(), False
        self.compiled: CompiledNetwork | None = None
        self._offloader: BlockOffloader | None = None
        self._vae_offload, self._vae_is_offloaded = ExitStack(), False
        self._placed = not networks.start_in_ram

    @property
    def unet(self) -> Callable[..., Any]:
        """The U-Net, compiled if it is."""
        return self.compiled or self.networks.unet

    def fit(self, latent_pixels: int, decoded: int = 0, mode: MemoryMode = "auto") -> str:
        """Choose a plan: `DiffusionModel.fit_memory`."""
        self.reset()
        self.decodes = decoded > 0
        if self.networks.device.type != "cuda":
            self._place(replace(PLANS.get(mode, MemoryPlan()), offload_vae=False))  # it is in RAM already
            return f"To save memory: {self.plan}." if str(self.plan) else ""
        plan, message = choose_plan(mode, self._need(latent_pixels, decoded))
        self._place(plan)
        return message

    def place(self) -> None:
        """Move U-Net and text encoders to the device unless they are there, those weights that do not fit excepted."""
        if not self._placed:
            on_gpu = self.networks.device.type == "cuda"
            self._place(choose_plan("auto", self._need(0, 0))[0] if on_gpu else MemoryPlan())

    def _place(self, plan: MemoryPlan) -> None:
        self._placed = True
        self.use(plan)

    def has_room(self, needed: int) -> bool:
        """Whether this many bytes are free on a CUDA device; always elsewhere."""
        return self.networks.device.type != "cuda" or free_bytes(self.networks.device) > needed

    def reduce(self, error: Exception) -> str:
        """Take one more measure after an error: `DiffusionModel.reduce_memory`.

        A compiled network is dropped whatever the error was: if the compiler did not cause it, it comes again.
        """
        if self.compiled is not None:
            self.drop_compiled()
            return failure(error)
        on_gpu = self.networks.device.type == "cuda"
        may_offload_vae = on_gpu and not (self.decodes or self._host_offloads_vae)
        plan = self.plan.next(may_offload_vae=may_offload_vae, may_offload_weights=on_gpu)
        if plan is None or not ran_out(error):
            return ""
        self.use(plan)
        return f"Memory ran out. To save memory from here on: {plan}."

    def compile(self, when: Compile, steps: int, shapes: int, on_compile: Callable[[], None]) -> str:
        """Compile the U-Net: `DiffusionModel.compile`. Not with checkpointing: CUDA graphs keep memory of their own."""
        self.drop_compiled()
        if self.networks.host_offloads_weights or self.plan.checkpointing:
            return NO_MEMORY if when == "on" else ""
        self.compiled, message = compile_network(self.networks.unet, self.networks.device, when, steps, shapes, on_compile)
        return message

    def drop_compiled(self) -> None:
        """Use the U-Net uncompiled from now on."""
        if self.compiled is not None:
            self.compiled.close()
            self.compiled = None

    def reset(self) -> None:
        """As before `fit` and `compile`, but weights that are on the device stay there."""
        self.drop_compiled()
        self._placed = not self.networks.start_in_ram
        self.use(MemoryPlan())

    def use(self, plan: MemoryPlan) -> None:
        """Follow this plan from now on."""
        self.plan = plan
        if self._offloader is not None:
            self._apply(self._offloader)
        if self.networks.device.type == "cuda":
            torch.cuda.empty_cache()  # blocks of the allocator's cache serve other sizes only once they are released

    def activate(self) -> None:
        """Apply the plan, and every later one, to the networks."""
        networks = self.networks
        autocast = networks.autocast or nullcontext
        self._offloader = BlockOffloader(networks.unet, networks.text_encoders, networks.device, autocast)
        self._apply(self._offloader)

    def deactivate(self) -> None:
        """Restore the networks; the plan is remembered."""
        offloader, self._offloader = self._offloader, None
        if offloader is not None:
            offloader.close()
        self._bring_vae_back()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within it the plan is applied."""
        try:
            self.activate()
            yield
        finally:
            self.deactivate()

    def _apply(self, offloader: BlockOffloader) -> None:
        networks = self.networks
        if self.plan.offload_vae and networks.start_in_ram:
            networks.vae.to(CPU)
        elif self.plan.offload_vae and not self._vae_is_offloaded:
            self._vae_offload.enter_context(moved_to(CPU, networks.vae))
            self._vae_is_offloaded = True
        offloader.apply(self.plan)
        if networks.start_in_ram and self._placed:
            vae = (networks.vae,) if self.decodes else ()
            for each in (networks.unet, *networks.text_encoders, *vae):  # all that the plan leaves on the device
                each.to(networks.device)
        if not self.plan.offload_vae:
            self._bring_vae_back()

    def _bring_vae_back(self) -> None:
        self._vae_is_offloaded = False
        self._vae_offload.close()

    @property
    def _host_offloads_vae(self) -> bool:
        return self.networks.host_offloads_weights or self.networks.host_offloads_vae

    def _need(self, latent_pixels: int, decoded: int) -> MemoryNeed:
        networks = self.networks
        device, vae, trained = networks.device, networks.vae, (networks.unet, *networks.text_encoders)
        used = (*trained, vae) if decoded else trained
        free = free_bytes(device) - bytes_of(*used, not_on=device)  # what the host has yet to move there
        vae_bytes = bytes_of(vae) - bytes_of(vae, not_on=device)
        if self._host_offloads_vae and not decoded:
            free, vae_bytes = free + vae_bytes, 0
        return estimate(
            networks.family,
            latent_pixels,
            free,
            networks.dtype.itemsize,
            autocast=networks.autocast is not None and networks.dtype != torch.float32,
            vae=vae_bytes,
            decoded=decoded,
            decoder_bytes_per_number=next(vae.parameters()).dtype.itemsize,
            unet_blocks=blocks_of(networks.unet),
            text_blocks=blocks_of(*networks.text_encoders),
        )
