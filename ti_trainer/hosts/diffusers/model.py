"""DiffusionModel over diffusers' modules. Knows nothing of how they were loaded or what they are used for.

B batch, C latent channels, H W latent height and width, V vectors, D width, T = 77 tokens a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from ti_trainer.files import short_hash
from ti_trainer.host import ModelOptions
from ti_trainer.hosts.diffusers.model_spec import noise_schedule, spec_of, takes_clip_skip
from ti_trainer.hosts.diffusers.text import TextEncoder
from ti_trainer.model import Compile, Conditioning, ImageConditioning, MemoryMode, Vectors, attention_of, masked_channels
from ti_trainer.offload.compiled import NO_ROOM, CompiledNetwork, compiled, failed
from ti_trainer.offload.kernels import fast_kernels
from ti_trainer.offload.plan import BY_HAND, MemoryPlan, bytes_of, free_bytes, need, plan, ran_out, sentence
from ti_trainer.offload.streaming import BlockOffloader, blocks_of
from ti_trainer.prompts import CHUNK, TokenizedPrompt


@dataclass
class DiffusersModel:
    """Stable Diffusion with one CLIP text encoder (1.x, 2.x) or two (SDXL), whose last one pools."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoders: Sequence[TextEncoder]
    scheduler: DDPMScheduler
    name: str
    weights: Path
    options: ModelOptions

    def __post_init__(self) -> None:
        """Derive what the seam promises; ConfigError for options that do not fit the model."""
        self.device, self.dtype = self.unet.device, self.unet.dtype
        self.spec = spec_of(self.unet, self.text_encoders, self.scheduler, self.options)
        self.alphas_cumprod = noise_schedule(self.scheduler, self.spec).to(self.device)
        if takes_clip_skip(self.spec):
            self.text_encoders = [self.text_encoders[0].ending(self.options.clip_skip)]
        self.needs_loss_scaling = self.dtype == torch.float16
        self.widths = {each.name: each.width for each in self.text_encoders}
        self.default_size_px = self.unet.config.sample_size * 8
        unet, *texts = self._trained_through
        self._plan, self._offloader, self._decodes = MemoryPlan(), BlockOffloader(unet, texts, self.device), False
        self._compiled: CompiledNetwork | None = None

    @cached_property
    def checkpoint_hash(self) -> str:
        """The WebUI's short hash; read only when asked for, since a checkpoint has gigabytes."""
        return short_hash(self.weights)

    @property
    def modules(self) -> tuple[torch.nn.Module, ...]:
        """All networks."""
        return self.unet, self.vae, *(each.module for each in self.text_encoders)

    @property
    def _trained_through(self) -> tuple[torch.nn.Module, ...]:
        return self.unet, *(each.module for each in self.text_encoders)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Freeze every weight; what required gradients before does so again afterwards."""
        before = [(module, module.training) for module in self.modules]
        thawed = [each for module in self.modules for each in module.parameters() if each.requires_grad]
        for module in self.modules:
            module.eval().requires_grad_(False)
        try:
            with fast_kernels(self.device):
                yield
        finally:
            for module, was_training in before:
                module.train(was_training)
            for each in thawed:
                each.requires_grad_()

    def compile(self, when: Compile, steps: int, sizes: int, begins: Callable[[], None]) -> str:
        """The U-Net, if nothing of it is computed twice: graphs keep memory for themselves."""
        self._not_compiled()
        if self._plan.recompute:
            return NO_ROOM if when == "on" else ""
        self._compiled, words = compiled(self.unet, self.device, when, steps, sizes, begins)
        return words

    @property
    def is_compiled(self) -> bool:
        """Whether it is still, or will be at the first step."""
        return self._compiled is not None

    def _not_compiled(self) -> None:
        if self._compiled is not None:
            self._compiled.close()
            self._compiled = None

    def tokenize(self, prompt: str, words: Mapping[str, Vectors]) -> TokenizedPrompt:
        """As the first text encoder is fed it; a second one fills up with another id."""
        return self.text_encoders[0].tokenize(prompt, words)

    def token_text(self, token_id: int) -> str:
        """Its letters; the end of a word is not marked."""
        return self.text_encoders[0].token_text(token_id)

    def token_embeddings(self, text: str) -> dict[str, Tensor]:
        """(m, D) for the m tokens of a text, by text encoder."""
        return {each.name: each.token_embeddings(text) for each in self.text_encoders}

    def fit_memory(self, places: int, decoded: int = 0, mode: MemoryMode = "auto") -> str:
        """Let give way what must, or what was chosen; by itself only on a GPU."""
        self.use_all_memory()
        self._decodes = decoded > 0
        if self.device.type != "cuda":
            self._give(replace(BY_HAND.get(mode, MemoryPlan()), vae_in_ram=False))  # it is there already
            return sentence(f"{self._plan}")
        unet, *texts = self._trained_through
        wanted = need(
            self.spec.family,
            places,
            free_bytes(self.device),
            self.dtype.itemsize,
            vae=bytes_of(self.vae),
            decoded=decoded,
            bytes_per_pixel_number=self.vae.dtype.itemsize,
            blocks=blocks_of(unet),
            text_blocks=blocks_of(*texts),
        )
        chosen, words = plan(mode, wanted)
        self._give(chosen)
        return words

    def reduce_memory(self, error: Exception) -> str:
        """What is compiled, whatever the error: another one comes again. Then, if memory ran out, the next thing."""
        if self._compiled is not None:
            self._not_compiled()
            return failed(error)
        on_gpu = self.device.type == "cuda"
        further = self._plan.further(vae_may_leave=on_gpu and not self._decodes, weights_may_leave=on_gpu)
        if further is None or not ran_out(error):
            return ""
        self._give(further)
        return sentence(f"Memory ran out; from here on {further}")

    def with_options(self, options: ModelOptions) -> DiffusersModel:
        """The same networks opened otherwise; what gave way is known to both."""
        other = replace(self, options=options)
        other._plan, other._offloader, other._decodes = self._plan, self._offloader, self._decodes
        other._compiled = self._compiled
        return other

    def use_all_memory(self) -> None:
        """As before `fit_memory` and `compile`."""
        self._not_compiled()
        self._give(MemoryPlan())

    def _give(self, chosen: MemoryPlan) -> None:
        self._plan = chosen
        if chosen.vae_in_ram:
            self.vae.to("cpu")
        (self.vae.enable_gradient_checkpointing if chosen.recompute else self.vae.disable_gradient_checkpointing)()
        self._offloader.follow(chosen)
        if not chosen.vae_in_ram:
            self.vae.to(self.device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what was given up is of use in other sizes only then

    @contextmanager
    def _ready_vae(self) -> Iterator[AutoencoderKL]:
        """Where it computes, for as long as it does."""
        try:
            yield self.vae.to(self.device)
        finally:
            if self._plan.vae_in_ram:
                self.vae.to("cpu")

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of latents, each (B, C, H, W)."""
        with self._ready_vae() as vae:
            latents = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist
        scale = self.vae.config.scaling_factor
        return latents.mean.float() * scale, latents.std.float() * scale

    def encode_masked(self, pixels: Tensor, masks: Tensor | None) -> Tensor | None:
        """(B, 1 + C, H, W) for inpainting models."""
        return masked_channels(self.encode_images, pixels, masks) if self.spec.inpainting else None

    @torch.no_grad()
    def image_attention(self, pixels: Tensor) -> Tensor:
        """(H W, H W) float32, of the block in the middle."""
        with self._ready_vae() as vae:
            (block,) = vae.encoder.mid_block.attentions
            pixels = pixels.to(self.device, vae.dtype)
            return attention_of(block, ("group_norm", "to_q", "to_k"), lambda: vae.encoder(pixels))

    def encode_prompts(self, prompts: Sequence[str], words: Mapping[str, Vectors]) -> Conditioning:
        """Hidden states (B, n T, sum of D) of prompts of up to n chunks, and for SDXL the pooled ones."""
        first, *others = self.text_encoders  # two may read a text otherwise, and cut it into more chunks
        rows = max((len(each.tokenize(prompt, words).chunks) for each in others for prompt in prompts), default=1)
        encoded = [first(prompts, words, rows)]
        encoded += [each(prompts, words, encoded[0][0].shape[1] // (CHUNK + 2)) for each in others]
        return Conditioning(torch.cat([hidden for hidden, _ in encoded], -1), encoded[-1][1])

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, cond: Conditioning, images: ImageConditioning) -> Tensor:
        """The U-Net's output (B, C, H, W) in its own precision."""
        inputs, hidden = noisy_latents.to(self.dtype), cond.hidden.to(self.dtype)
        if images.masked is not None:
            inputs = torch.cat([inputs, images.masked.to(inputs)], 1)  # (B, 2 C + 1, H, W)
        unet = self._compiled or self.unet
        if cond.pooled is None:
            return unet(inputs, timesteps, hidden, return_dict=False)[0]
        added = {"text_embeds": cond.pooled, "time_ids": images.sizes}  # bf16 has no numbers such as 1023
        return unet(inputs, timesteps, hidden, added_cond_kwargs=added, return_dict=False)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, 8 H, 8 W) in [-1, 1], not clamped."""
        with self.decoding() as decode:
            return decode(latents)

    @contextmanager
    def decoding(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """`decode`, and the VAE stays where it computes."""
        with self._ready_vae() as vae:
            yield lambda latents: vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
