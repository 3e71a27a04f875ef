"""DiffusionModel over the checkpoint that the WebUI has loaded: real `ldm` or `sgm` modules, as the host left them.

The forward pass is ours; what only the host can say (device, autocast, how to free memory) comes in as Surroundings.
Knows none of the host's modules, and nothing of how images are drawn.

B batch, C latent channels, H W latent height and width, V vectors, D width, T = 77 tokens a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ti_trainer.functional.objective import zero_terminal_snr
from ti_trainer.hosts.webui.model_spec import is_sdxl, size_embedders
from ti_trainer.hosts.webui.patches import channels_last, frozen, placed, plain, timesteps_on_device, without_hooks
from ti_trainer.hosts.webui.text import PromptEncoder
from ti_trainer.hosts.webui.vae import MEDVRAM_HOOK, Vae, dtype_of
from ti_trainer.model import Compile, Conditioning, ImageConditioning, MemoryMode, ModelSpec, Vectors, masked_channels
from ti_trainer.offload.compiled import NO_ROOM, CompiledNetwork, compiled, failed
from ti_trainer.offload.kernels import fast_kernels
from ti_trainer.offload.plan import BY_HAND, MemoryPlan, bytes_of, free_bytes, need, plan, ran_out, sentence
from ti_trainer.offload.streaming import CPU, BlockOffloader, attributes, blocks_of
from ti_trainer.prompts import TokenizedPrompt

SDXL_SIZE_PX, SD2_V_SIZE_PX = 1024, 768  # their configurations say nothing, and 512


@dataclass(frozen=True)
class RuntimeSettings:
    """What the host decides about computing, by default what it does without a GPU."""

    device: torch.device = CPU
    unet_dtype: torch.dtype = torch.float32
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    fp32_attention: bool = False  # its setting, for cards and models that need it
    vae_to_ram: bool = False  # its setting for the time of training
    clear_networks: Callable[[], None] = lambda: None  # LoRAs of the last image are forgotten
    empty_device: Callable[[], None] = lambda: None  # with --medvram: whatever is on the GPU leaves it


@dataclass
class WebuiModel:
    """Stable Diffusion 1.x or 2.x, an ldm LatentDiffusion, or SDXL, an sgm DiffusionEngine, which has two `texts`."""

    sd_model: Any
    spec: ModelSpec
    texts: Sequence[PromptEncoder]
    around: RuntimeSettings = RuntimeSettings()

    def __post_init__(self) -> None:
        """Derive what the seam promises."""
        network, self.device = self.sd_model, self.around.device
        # The host replaces alphas_cumprod for sampling where its settings say so; these are the ones of its training.
        alphas_cumprod = getattr(network, "alphas_cumprod_original", network.alphas_cumprod).detach().float().cpu()
        if self.spec.zero_terminal_snr:
            alphas_cumprod = zero_terminal_snr(alphas_cumprod)
        self.alphas_cumprod = alphas_cumprod.to(self.device)
        self.widths = {text.encoder: text.width for text in self.texts}
        in_half = self.around.unet_dtype == torch.float16
        self.needs_loss_scaling = in_half
        self._fp32_attention = self.around.fp32_attention or (in_half and self.spec.family == "SD 2.x")
        self._decodes = False
        self._plan, self._vae = MemoryPlan(), Vae(network, self.device)
        self._borrowing: ExitStack | None = None
        self._compiled: CompiledNetwork | None = None

    @property
    def default_size_px(self) -> int:
        """What the model was made for."""
        if is_sdxl(self.sd_model):
            return SDXL_SIZE_PX
        is_sd2_v = self.spec.family == "SD 2.x" and self.spec.prediction_type == "v_prediction"
        return SD2_V_SIZE_PX if is_sd2_v else self.sd_model.image_size * 8

    @property
    def name(self) -> str:
        """The checkpoint's, without its folder and ending."""
        return self.sd_model.sd_checkpoint_info.model_name

    @cached_property
    def checkpoint_hash(self) -> str | None:
        """The first 10 digits; None if the host does not hash."""
        info = self.sd_model.sd_checkpoint_info
        return info.shorthash or info.calculate_shorthash()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Weights are frozen, U-Net and text encoder are on the device and compute as published; then all is as before."""
        if self._borrowing is not None:
            yield
            return
        with ExitStack() as stack:
            self._borrow(stack)
            self._borrowing = stack
            try:
                yield
            finally:
                self._borrowing = None
                self._not_compiled()

    @contextmanager
    def lent_back(self) -> Iterator[None]:
        """In the middle of training, the host has its network as it was, to draw with."""
        stack, self._borrowing = self._borrowing, None
        if stack is None:
            yield
            return
        stack.close()
        try:
            yield
        finally:
            self._borrow(stack)
            self._borrowing = stack

    def fit_memory(self, places: int, decoded: int = 0, mode: MemoryMode = "auto") -> str:
        """Let give way what must, or what was chosen, besides what the host's own options and settings say."""
        self._decodes = decoded > 0
        if self.device.type != "cuda":
            self._plan = replace(BY_HAND.get(mode, MemoryPlan()), vae_in_ram=False)  # it is there already
            return sentence(f"{self._plan}")
        vae = self.sd_model.first_stage_model
        used = (*self._trained_through, vae) if decoded else self._trained_through
        free = free_bytes(self.device) - bytes_of(*used, but_on=self.device)  # with --medvram it comes only then
        movable = bytes_of(vae) - bytes_of(vae, but_on=self.device)
        if (self._medvram or self.around.vae_to_ram) and not decoded:  # then it leaves anyway
            free, movable = free + movable, 0
        numbers, in_half = self.around.unet_dtype.itemsize, self.around.unet_dtype != torch.float32
        wanted = need(
            self.spec.family,
            places,
            free,
            numbers,
            autocast=in_half,
            vae=movable,
            decoded=decoded,
            bytes_per_pixel_number=dtype_of(vae).itemsize,
            blocks=blocks_of(self._trained_through[0]),
            text_blocks=blocks_of(self._trained_through[1]),
        )
        self._plan, words = plan(mode, wanted)
        return words

    def compile(self, when: Compile, steps: int, sizes: int, begins: Callable[[], None]) -> str:
        """The U-Net, if it stays where it is and nothing of it is computed twice, until `training` is over."""
        self._not_compiled()
        if self._medvram or self._plan.recompute:
            return NO_ROOM if when == "on" else ""
        network = self.sd_model.model.diffusion_model
        self._compiled, words = compiled(network, self.device, when, steps, sizes, begins)
        return words

    def _not_compiled(self) -> None:
        if self._compiled is not None:
            self._compiled.close()
            self._compiled = None

    def reduce_memory(self, error: Exception) -> str:
        """What is compiled, whatever the error: another one comes again. Then, if memory ran out, the next thing."""
        if self._compiled is not None:
            self._not_compiled()
            return failed(error)
        on_gpu = self.device.type == "cuda"
        vae_may_leave = on_gpu and not (self._decodes or self._medvram or self.around.vae_to_ram)
        further = self._plan.further(vae_may_leave=vae_may_leave, weights_may_leave=on_gpu)
        if further is None or not ran_out(error):
            return ""
        if self._borrowing is not None:
            if further.vae_in_ram and not self._plan.vae_in_ram:
                self._borrowing.enter_context(placed(self.sd_model.first_stage_model, CPU))
            self._offloader.follow(further)
        self._plan = further
        if on_gpu:
            torch.cuda.empty_cache()  # what was given up is of use in other sizes only then
        return sentence(f"Memory ran out; from here on {further}")

    def tokenize(self, prompt: str, words: Mapping[str, Vectors]) -> TokenizedPrompt:
        """The token ids as they are fed to the first text encoder, and the places of embeddings, which are those of all."""
        return self.texts[0].tokenize(prompt, words)

    def token_text(self, token_id: int) -> str:
        """Its letters; the end of a word is not marked."""
        return self.texts[0].token_text(token_id)

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
        """(H W, H W) float32, of the block in the middle."""
        return self._vae.attention(pixels)

    def encode_masked(self, pixels: Tensor, masks: Tensor | None) -> Tensor | None:
        """(B, 1 + C, H, W) for inpainting models: the mask, and the latents of what is left of the images."""
        return masked_channels(self.encode_images, pixels, masks) if self.spec.inpainting else None

    def encode_prompts(self, prompts: Sequence[str], words: Mapping[str, Vectors]) -> Conditioning:
        """Hidden states (B, n T, D) of prompts of up to n chunks, as the host makes them of each; D is all encoders'."""
        with self.training(), self.around.autocast():
            hidden, pooled = zip(*(text(prompts, words) for text in self.texts), strict=True)
            return Conditioning(torch.cat(hidden, 2), next((each for each in pooled if each is not None), None))

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, cond: Conditioning, images: ImageConditioning) -> Tensor:
        """The U-Net's output (B, C, H, W) in its own precision."""
        if self.spec.inpainting:
            noisy_latents = torch.cat([noisy_latents, images.masked.to(noisy_latents)], 1)  # (B, 2 C + 1, H, W)
        with self.training(), self.around.autocast():
            y = self._size_conditioned(cond, images) if is_sdxl(self.sd_model) else None
            latents, times, context = (each.to(self.around.unet_dtype) for each in (noisy_latents, timesteps, cond.hidden))
            unet = self._compiled or self.sd_model.model.diffusion_model
            return unet(latents, times, context=context, y=y)

    def _size_conditioned(self, cond: Conditioning, images: ImageConditioning) -> Tensor:
        """(B, width): what SDXL is told besides hidden states, in the order that its conditioner has."""
        sizes = images.sizes.to(self.device)
        embedded = [embedder(sizes[:, column : column + 2]) for column, embedder in size_embedders(self.sd_model)]
        return torch.cat([each.to(self.around.unet_dtype) for each in (cond.pooled, *embedded)], 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, 8 H, 8 W) in [-1, 1], not clamped."""
        with self.decoding() as decode:
            return decode(latents)

    @contextmanager
    def decoding(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """`decode`, and the VAE stays where it computes."""
        with self._vae.decoding(recompute=self._plan.recompute > 0) as decode:
            yield lambda latents: decode(1 / self.sd_model.scale_factor * latents)

    @property
    def _trained_through(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        network = self.sd_model
        return network.model, network.conditioner if is_sdxl(network) else network.cond_stage_model

    @property
    def _medvram(self) -> bool:
        return getattr(self.sd_model, "lowvram", False)

    def _borrow(self, stack: ExitStack) -> None:
        network, around = self.sd_model, self.around
        around.clear_networks()
        unet, text = self._trained_through
        if self.device.type == "cpu":  # a GPU's kernels were not measured with it
            stack.enter_context(channels_last(network.model.diffusion_model))
        self._offloader = BlockOffloader(network.model.diffusion_model, [text], self.device, around.autocast)
        if self._medvram:
            around.empty_device()
            for part in (unet, text):
                stack.enter_context(without_hooks(part, MEDVRAM_HOOK))
        elif (around.vae_to_ram or self._plan.vae_in_ram) and not self._decodes:
            stack.enter_context(placed(network.first_stage_model, CPU))
        stack.enter_context(frozen(network))
        stack.enter_context(fast_kernels(self.device))
        stack.enter_context(attributes(timesteps_on_device(network.model.diffusion_model)))
        stack.enter_context(attributes(plain(network.model.diffusion_model, fp32_attention=self._fp32_attention)))
        stack.callback(self._offloader.close)
        self._offloader.follow(self._plan)
        for part in (unet, text) if self._medvram else ():  # what is left of it, if its weights wait in RAM
            stack.enter_context(placed(part, self.device))
