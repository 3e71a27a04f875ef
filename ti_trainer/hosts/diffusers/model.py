"""DiffusionModel over the modules of diffusers and transformers.

B batch, C latent channels, H W latent height and width, V vectors, D width, T = 77 tokens a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ti_trainer.files import short_hash
from ti_trainer.host import ModelOptions
from ti_trainer.hosts.cross_attention import AttendsToText
from ti_trainer.hosts.diffusers.library import AutoencoderKL, DDPMScheduler, UNet2DConditionModel, prepare_compiling
from ti_trainer.hosts.diffusers.model_spec import noise_schedule, spec_of, takes_clip_skip
from ti_trainer.hosts.diffusers.text import TextEncoder
from ti_trainer.hosts.diffusers.vae import Vae
from ti_trainer.hosts.lora_layers import LoraLayers, TakesLoras
from ti_trainer.model import (
    Compile,
    Conditioning,
    DiffusionModel,
    ImageConditioning,
    MemoryMode,
    Vectors,
    masked_channels,
)
from ti_trainer.offload.kernels import fast_kernels
from ti_trainer.offload.manager import MemoryManager, Networks
from ti_trainer.prompts import CHUNK, TokenizedPrompt


@dataclass
class DiffusersModel(TakesLoras, AttendsToText):
    """Stable Diffusion with one CLIP text encoder (1.x, 2.x) or two (SDXL), whose last one pools.

    `device` is where the networks compute. They start in RAM and move there when they are used, U-Net and text encoders once
    it is known how much memory a step needs.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoders: Sequence[TextEncoder]
    scheduler: DDPMScheduler
    name: str
    weights: Path
    options: ModelOptions
    device: torch.device

    def __post_init__(self) -> None:
        """Derive the interface's attributes; ConfigError for options that do not fit the model."""
        self.dtype = self.unet.dtype
        self.spec = spec_of(self.unet, self.text_encoders, self.scheduler, self.options)
        self.alphas_cumprod = noise_schedule(self.scheduler, self.spec).to(self.device)
        if takes_clip_skip(self.spec):
            self.text_encoders = [self.text_encoders[0].ending(self.options.clip_skip)]
        self.needs_loss_scaling = self.dtype == torch.float16
        self.widths = {each.name: each.width for each in self.text_encoders}
        self.default_size_px = self.unet.config.sample_size * 8
        self.memory = MemoryManager(
            Networks(
                unet=self.unet,
                text_encoders=tuple(each.module for each in self.text_encoders),
                vae=self.vae,
                family=self.spec.family,
                device=self.device,
                dtype=self.dtype,
                start_in_ram=self.device.type != "cpu",
            )
        )
        self.memory.activate()
        self._vae = Vae(self.vae, self.memory)
        encoders = [each.module.named_modules for each in self.text_encoders]
        self._lora_layers = LoraLayers(self.unet, encoders, self.device, self.dtype, self.name, self.spec)

    @cached_property
    def checkpoint_hash(self) -> str:
        """The WebUI's short hash; computed on first use, since a checkpoint has gigabytes."""
        return short_hash(self.weights)

    @property
    def modules(self) -> tuple[torch.nn.Module, ...]:
        """All networks."""
        return self.unet, self.vae, *(each.module for each in self.text_encoders)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Freeze all weights; afterwards those that required gradients do so again."""
        before = [(module, module.training) for module in self.modules]
        trainable = [each for module in self.modules for each in module.parameters() if each.requires_grad]
        for module in self.modules:
            module.eval().requires_grad_(False)
        try:
            with fast_kernels(self.device):
                yield
        finally:
            for module, was_training in before:
                module.train(was_training)
            for each in trainable:
                each.requires_grad_()

    def fit_memory(self, latent_pixels: int, decoded: int = 0, mode: MemoryMode = "auto") -> str:
        """Choose how to save memory; it is in effect at once, until `use_all_memory`."""
        if decoded:
            self.vae.to(torch.float32)  # before it is measured
        return self.memory.fit(latent_pixels, decoded, mode)

    def compile(self, when: Compile, steps: int, sizes: int, on_compile: Callable[[], None]) -> str:
        """Compile the U-Net, unless it is checkpointed."""
        if when == "on" or self.device.type == "cuda":
            prepare_compiling()
        return self.memory.compile(when, steps, sizes, on_compile)

    def reduce_memory(self, error: Exception) -> str:
        """Save more memory after this error, or use the U-Net uncompiled."""
        return self.memory.reduce(error)

    def use_all_memory(self) -> None:
        """Undo `fit_memory` and `compile`."""
        self.memory.reset()

    def tokenize(self, prompt: str, embeddings: Mapping[str, Vectors]) -> TokenizedPrompt:
        """The ids for the first text encoder; a second one has another padding id."""
        return self.text_encoders[0].tokenize(prompt, embeddings)

    def token_text(self, token_id: int) -> str:
        """The text of a token, without the mark at the end of a word."""
        return self.text_encoders[0].token_text(token_id)

    def token_piece(self, token_id: int) -> str:
        """A token as the vocabulary spells it."""
        return self.text_encoders[0].token_piece(token_id)

    def token_tables(self) -> dict[str, Tensor]:
        """(N, D) by text encoder."""
        return {each.name: each.table.weight.detach() for each in self.text_encoders}

    def token_embeddings(self, text: str) -> dict[str, Tensor]:
        """(m, D) for the m tokens of a text, by text encoder."""
        return {each.name: each.token_embeddings(text) for each in self.text_encoders}

    def with_options(self, options: ModelOptions) -> DiffusersModel:
        """The same networks opened with other options; both share one MemoryManager."""
        other = replace(self, options=options)
        other.memory, other._vae = self.memory, self._vae
        return other

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of latents, each (B, C, H, W)."""
        return self._vae.encode(pixels)

    def encode_masked(self, pixels: Tensor, masks: Tensor | None) -> Tensor | None:
        """(B, 1 + C, H, W) for inpainting models."""
        return masked_channels(self.encode_images, pixels, masks) if self.spec.inpainting else None

    @torch.no_grad()
    def image_attention(self, pixels: Tensor) -> Tensor:
        """(H W, H W) float32, of the encoder's middle block."""
        return self._vae.attention(pixels)

    def encode_prompts(self, prompts: Sequence[str], embeddings: Mapping[str, Vectors]) -> Conditioning:
        """Hidden states (B, n T, sum of D) of prompts of up to n chunks, and the pooled ones of SDXL."""
        self.memory.place()
        first, *others = self.text_encoders  # two tokenizers may cut a text into different numbers of chunks
        chunks = max((len(each.tokenize(prompt, embeddings).chunks) for each in others for prompt in prompts), default=1)
        encoded = [first(prompts, embeddings, chunks)]
        encoded += [each(prompts, embeddings, encoded[0][0].shape[1] // (CHUNK + 2)) for each in others]
        return Conditioning(torch.cat([hidden for hidden, _ in encoded], -1), encoded[-1][1])

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, cond: Conditioning, images: ImageConditioning) -> Tensor:
        """The U-Net's output (B, C, H, W) in its own precision."""
        inputs, hidden = noisy_latents.to(self.dtype), cond.hidden.to(self.dtype)
        if images.masked is not None:
            inputs = torch.cat([inputs, images.masked.to(inputs)], 1)  # (B, 2 C + 1, H, W)
        self.memory.place()
        unet = self.memory.unet
        if cond.pooled is None:
            return unet(inputs, timesteps, hidden, return_dict=False)[0]
        added = {"text_embeds": cond.pooled, "time_ids": images.sizes}  # not in bf16, which cannot represent 1023
        return unet(inputs, timesteps, hidden, added_cond_kwargs=added, return_dict=False)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, 8 H, 8 W) in [-1, 1], not clamped; in overlapping tiles if a GPU has no room for whole images."""
        return self._vae.decode(latents)

    def decoding(self) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """Gives `decode` with gradient; the VAE stays on the device, and is checkpointed if the U-Net is."""
        return self._vae.decoding()


_: type[DiffusionModel] = DiffusersModel
