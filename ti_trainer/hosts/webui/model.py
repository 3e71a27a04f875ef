"""DiffusionModel over the checkpoint that the WebUI has loaded: its `ldm` or `sgm` modules, as the WebUI has patched them.

The forward pass is ours. What only the WebUI knows (device, autocast, how to free memory) is passed in as RuntimeSettings,
so this module does not import the WebUI's.

B batch, C latent channels, H W latent height and width, V vectors, D width, T = 77 tokens a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ti_trainer.functional.objective import zero_terminal_snr
from ti_trainer.hosts.cross_attention import AttendsToText
from ti_trainer.hosts.lora_layers import LoraLayers, TakesLoras
from ti_trainer.hosts.webui.model_spec import is_sdxl, size_embedders
from ti_trainer.hosts.webui.patches import (
    channels_last,
    frozen,
    without_hooks,
    without_host_patches,
    without_waits,
)
from ti_trainer.hosts.webui.text import PromptEncoder
from ti_trainer.hosts.webui.vae import MEDVRAM_HOOK, Vae
from ti_trainer.model import (
    Compile,
    Conditioning,
    DiffusionModel,
    ImageConditioning,
    MemoryMode,
    ModelSpec,
    Vectors,
    masked_channels,
)
from ti_trainer.offload.kernels import fast_kernels
from ti_trainer.offload.manager import MemoryManager, Networks
from ti_trainer.offload.patching import Change, moved_to, patched
from ti_trainer.offload.streaming import CPU
from ti_trainer.prompts import TokenizedPrompt

SDXL_SIZE_PX, SD2_V_SIZE_PX = 1024, 768  # the published configurations give no size, and 512


@dataclass(frozen=True)
class RuntimeSettings:
    """The WebUI's settings for computing; the defaults are those without a GPU."""

    device: torch.device = CPU
    unet_dtype: torch.dtype = torch.float32
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    fp32_attention: bool = False  # its setting "Upcast cross attention layer to float32"
    vae_to_ram: bool = False  # its setting "Move VAE and CLIP to RAM when training"
    clear_networks: Callable[[], None] = lambda: None  # deactivates the LoRAs of the last image
    empty_device: Callable[[], None] = lambda: None  # with --medvram: moves everything off the GPU
    # Forge's and its relatives' only:
    weights_in_ram: bool = False  # after `clear_networks` all weights are in RAM, from where they are moved to the device
    unet_changes: Callable[[nn.Module], Iterable[Change]] = lambda unet: ()  # without which it cannot be trained through
    prepare_vae: Callable[[], None] = lambda: None  # called each time before the VAE is moved, cast or used


@dataclass
class WebuiModel(TakesLoras, AttendsToText):
    """Stable Diffusion 1.x or 2.x, an ldm LatentDiffusion, or SDXL, an sgm DiffusionEngine, which has two `texts`."""

    sd_model: Any
    spec: ModelSpec
    texts: Sequence[PromptEncoder]
    settings: RuntimeSettings = RuntimeSettings()

    def __post_init__(self) -> None:
        """Derive the interface's attributes."""
        network, self.device = self.sd_model, self.settings.device
        # For sampling, the WebUI replaces alphas_cumprod where its settings say so; these are the ones of the training.
        alphas_cumprod = getattr(network, "alphas_cumprod_original", network.alphas_cumprod).detach().float().cpu()
        if self.spec.zero_terminal_snr:
            alphas_cumprod = zero_terminal_snr(alphas_cumprod)
        self.alphas_cumprod = alphas_cumprod.to(self.device)
        self.widths = {text.encoder: text.width for text in self.texts}
        in_half = self.settings.unet_dtype == torch.float16
        self.needs_loss_scaling = in_half
        self._fp32_attention = self.settings.fp32_attention or (in_half and self.spec.family == "SD 2.x")
        self._vae = Vae(network, self.device, self.settings.prepare_vae)
        self._patches: ExitStack | None = None  # what `training` has changed, to be undone
        self.memory = MemoryManager(
            Networks(
                unet=network.model.diffusion_model,
                text_encoders=(network.conditioner if is_sdxl(network) else network.cond_stage_model,),
                vae=network.first_stage_model,
                family=self.spec.family,
                device=self.device,
                dtype=self.settings.unet_dtype,
                autocast=self.settings.autocast,
                host_offloads_weights=getattr(network, "lowvram", False),  # the WebUI's mark of --medvram
                host_offloads_vae=self.settings.vae_to_ram or self.settings.weights_in_ram,
            )
        )

        self._lora_layers = LoraLayers(
            network.model.diffusion_model,
            [each.stage.named_modules for each in self.texts],
            self.device,
            self.settings.unet_dtype,
            self.name,
            self.spec,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the U-Net's activations."""
        return self.settings.unet_dtype

    @property
    def default_size_px(self) -> int:
        """Width and height of the images that the model was trained on."""
        if is_sdxl(self.sd_model):
            return SDXL_SIZE_PX
        is_sd2_v = self.spec.family == "SD 2.x" and self.spec.prediction_type == "v_prediction"
        return SD2_V_SIZE_PX if is_sd2_v else int(self.sd_model.image_size) * 8

    @property
    def name(self) -> str:
        """The checkpoint's name, without its folder and ending."""
        return str(self.sd_model.sd_checkpoint_info.model_name)

    @cached_property
    def checkpoint_hash(self) -> str | None:
        """The first 10 digits; None if the WebUI was started without hashing."""
        info = self.sd_model.sd_checkpoint_info
        return info.shorthash or info.calculate_shorthash()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Freeze the weights and make U-Net and text encoders compute on the device as published; then restore all."""
        if self._patches is not None:
            yield
            return
        with ExitStack() as stack:
            self._patch(stack)
            self._patches = stack
            try:
                yield
            finally:
                self._patches = None
                self.memory.drop_compiled()

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Within `training`: give the WebUI its network back as it was, to generate an image."""
        stack, self._patches = self._patches, None
        if stack is None:
            yield
            return
        stack.close()
        try:
            yield
        finally:
            self._patch(stack)
            self._patches = stack

    def fit_memory(self, latent_pixels: int, decoded: int = 0, mode: MemoryMode = "auto") -> str:
        """Choose how to save memory, besides what the WebUI's own options and settings do; in effect within `training`."""
        return self.memory.fit(latent_pixels, decoded, mode)

    def compile(self, when: Compile, steps: int, sizes: int, on_compile: Callable[[], None]) -> str:
        """Compile the U-Net until the end of `training`, unless it is checkpointed or moved by the WebUI."""
        return self.memory.compile(when, steps, sizes, on_compile)

    def reduce_memory(self, error: Exception) -> str:
        """Save more memory after this error, or use the U-Net uncompiled."""
        return self.memory.reduce(error)

    def tokenize(self, prompt: str, embeddings: Mapping[str, Vectors]) -> TokenizedPrompt:
        """The ids for the first text encoder; the positions of embeddings are the same in all."""
        return self.texts[0].tokenize(prompt, embeddings)

    def token_text(self, token_id: int) -> str:
        """The text of a token, without the mark at the end of a word."""
        return self.texts[0].token_text(token_id)

    def token_piece(self, token_id: int) -> str:
        """A token as the vocabulary spells it."""
        return self.texts[0].token_piece(token_id)

    def token_tables(self) -> dict[str, Tensor]:
        """(N, D) by text encoder."""
        return {each.encoder: each.token_table for each in self.texts}

    def token_embeddings(self, text: str) -> dict[str, Tensor]:
        """(m, D) by text encoder, for the m tokens of a text."""
        return {each.encoder: each.token_embeddings(text) for each in self.texts}

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of latents, each (B, C, H, W)."""
        mean, std = self._vae.encode(pixels)
        return self.sd_model.scale_factor * mean, self.sd_model.scale_factor * std

    @torch.no_grad()
    def image_attention(self, pixels: Tensor) -> Tensor:
        """(H W, H W) float32, of the encoder's middle block."""
        return self._vae.attention(pixels)

    def encode_masked(self, pixels: Tensor, masks: Tensor | None) -> Tensor | None:
        """(B, 1 + C, H, W) for inpainting models: the mask, and the latents of the rest of the images."""
        return masked_channels(self.encode_images, pixels, masks) if self.spec.inpainting else None

    def encode_prompts(self, prompts: Sequence[str], embeddings: Mapping[str, Vectors]) -> Conditioning:
        """Hidden states (B, n T, D) of prompts of up to n chunks, as the WebUI makes them; D is the sum of all encoders'."""
        with self.training(), self.settings.autocast():
            hidden, pooled = zip(*(text(prompts, embeddings) for text in self.texts), strict=True)
            return Conditioning(torch.cat(hidden, 2), next((each for each in pooled if each is not None), None))

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, cond: Conditioning, images: ImageConditioning) -> Tensor:
        """The U-Net's output (B, C, H, W) in its own precision."""
        if images.masked is not None and self.spec.inpainting:
            noisy_latents = torch.cat([noisy_latents, images.masked.to(noisy_latents)], 1)  # (B, 2 C + 1, H, W)
        with self.training(), self.settings.autocast():
            y = None
            if is_sdxl(self.sd_model) and cond.pooled is not None:
                y = self._vector_conditioning(cond.pooled, images)
            dtype = self.settings.unet_dtype
            times = timesteps.to(torch.float32 if dtype == torch.bfloat16 else dtype)  # bfloat16 has no 999
            prediction: Tensor = self.memory.unet(noisy_latents.to(dtype), times, context=cond.hidden.to(dtype), y=y)
            return prediction

    def _vector_conditioning(self, pooled: Tensor, images: ImageConditioning) -> Tensor:
        """(B, width): SDXL's conditioning besides hidden states, in the order of its conditioner."""
        sizes = images.sizes.to(self.device)
        embedded = [embedder(sizes[:, column : column + 2]) for column, embedder in size_embedders(self.sd_model)]
        return torch.cat([each.to(self.settings.unet_dtype) for each in (pooled, *embedded)], 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, 8 H, 8 W) in [-1, 1], not clamped."""
        with self.decoding() as decode:
            return decode(latents)

    @contextmanager
    def decoding(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Gives `decode`; the VAE stays on the device, and is checkpointed if the U-Net is."""
        with self._vae.decoding(checkpointing=self.memory.plan.checkpointing > 0) as decode:
            yield lambda latents: decode(1 / self.sd_model.scale_factor * latents)

    def _patch(self, stack: ExitStack) -> None:
        network, settings, medvram = self.sd_model, self.settings, self.memory.networks.host_offloads_weights
        settings.clear_networks()
        trained = (network.model, *self.memory.networks.text_encoders)
        unet = network.model.diffusion_model
        if self.device.type == "cpu":  # not measured with a GPU's kernels
            stack.enter_context(channels_last(unet))
        if medvram:
            settings.empty_device()
            for part in trained:
                stack.enter_context(without_hooks(part, MEDVRAM_HOOK))
        elif settings.vae_to_ram and not self.memory.decodes:
            stack.enter_context(moved_to(CPU, network.first_stage_model))
        stack.enter_context(frozen(network))
        stack.enter_context(fast_kernels(self.device))
        stack.enter_context(patched(without_waits(unet, *self.memory.networks.text_encoders)))
        stack.enter_context(patched(without_host_patches(unet, fp32_attention=self._fp32_attention)))
        stack.enter_context(patched(settings.unet_changes(unet)))
        stack.enter_context(self.memory.active())
        for part in trained if medvram or settings.weights_in_ram else ():  # all that the memory plan leaves on the device
            stack.enter_context(moved_to(self.device, part))


_: type[DiffusionModel] = WebuiModel
