"""DiffusionModel over the checkpoint that the WebUI has loaded: real `ldm` modules, as the host left them.

The forward pass is ours; what only the host can say (device, autocast, how to free memory) comes in as Surroundings.
Knows none of the host's modules, and nothing of how pictures are drawn.

B batch, C latent channels, H W latent height and width, V vectors, D width, T = 77 tokens a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ti_trainer.errors import ModelError
from ti_trainer.hosts.webui.borrowed import attributes, channels_last, frozen, placed, plain, without_hooks
from ti_trainer.hosts.webui.text import PromptEncoder
from ti_trainer.model import Conditioning, PredictionType, Vectors
from ti_trainer.prompts import TokenizedPrompt

PREDICTIONS: dict[str, PredictionType] = {"eps": "epsilon", "v": "v_prediction"}
MEDVRAM_HOOK = "send_me_to_gpu"  # with --medvram, what brings a module to the GPU and sends the last one away
LATER = "SD 1.x and 2.x can be trained so far."
SD2_V_SIZE_PX = 768  # its configuration says 512
CLIPS = ("FrozenCLIPEmbedder", "FrozenOpenCLIPEmbedder")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Surroundings:
    """What the host decides about computing, by default what it does without a GPU."""

    device: torch.device = CPU
    unet_dtype: torch.dtype = torch.float32
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    vae_to_ram: bool = False  # its setting for the time of training
    clear_networks: Callable[[], None] = lambda: None  # LoRAs of the last picture are forgotten
    empty_device: Callable[[], None] = lambda: None  # with --medvram: whatever is on the GPU leaves it


@dataclass
class WebuiModel:
    """Stable Diffusion 1.x, and 2.x, which differs in its text encoder only. `sd_model` is an ldm LatentDiffusion."""

    sd_model: Any
    text: PromptEncoder
    around: Surroundings = Surroundings()

    def __post_init__(self) -> None:
        """Derive what the seam promises."""
        network, self.device = self.sd_model, self.around.device
        # The host replaces alphas_cumprod for sampling where its settings say so; these are the ones of its training.
        alphas_cumprod = getattr(network, "alphas_cumprod_original", network.alphas_cumprod)
        self.alphas_cumprod = alphas_cumprod.detach().to(self.device, torch.float32)
        self.prediction_type = PREDICTIONS[network.parameterization]
        self.widths = self.text.widths
        self.needs_loss_scaling = self.around.unet_dtype == torch.float16
        is_sd2_v = "clip_h" in self.widths and network.parameterization == "v"
        self.default_size_px = SD2_V_SIZE_PX if is_sd2_v else network.image_size * 8
        self._borrowing: ExitStack | None = None

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

    def tokenize(self, prompt: str, words: Mapping[str, Vectors]) -> TokenizedPrompt:
        """The token ids as they are fed, and the places of embeddings."""
        return self.text.tokenize(prompt, words)

    def token_text(self, token_id: int) -> str:
        """Its letters; the end of a word is not marked."""
        return self.text.token_text(token_id)

    def token_embeddings(self, text: str) -> dict[str, Tensor]:
        """(m, D) for the m tokens of a text."""
        return {self.text.encoder: self.text.token_embeddings(text)}

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of latents, each (B, C, H, W)."""
        with self._ready_vae() as vae:
            latents = vae.encode(pixels.to(self.device, _dtype(vae)))
        mean, std = (self.sd_model.scale_factor * each.float() for each in (latents.mean, latents.std))
        if not bool(mean.isfinite().all()):
            message = "The VAE makes no numbers of a picture in half precision: start the WebUI with --no-half-vae."
            raise ModelError(message)
        return mean, std

    def encode_prompts(self, prompts: Sequence[str], words: Mapping[str, Vectors]) -> Conditioning:
        """Hidden states (B, n T, D) of prompts of up to n chunks, as the host makes them of each."""
        with self.training(), self.around.autocast():
            return Conditioning(self.text(prompts, words))

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
        """The U-Net's output (B, C, H, W) in its own precision."""
        inputs = (each.to(self.around.unet_dtype) for each in (noisy_latents, timesteps, cond.hidden))
        with self.training(), self.around.autocast():
            latents, times, context = inputs
            return self.sd_model.model.diffusion_model(latents, times, context=context)

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, 8 H, 8 W) in [-1, 1], not clamped."""
        with self._ready_vae() as vae:
            return vae.decode((1 / self.sd_model.scale_factor * latents).to(self.device, _dtype(vae)))

    @property
    def _medvram(self) -> bool:
        return getattr(self.sd_model, "lowvram", False)

    @contextmanager
    def _ready_vae(self) -> Iterator[Any]:
        """On the device, where with --medvram the host brings it itself, and not tiling."""
        vae = self.sd_model.first_stage_model
        with nullcontext() if self._medvram else placed(vae, self.device), attributes(plain(vae)):
            yield vae

    def _borrow(self, stack: ExitStack) -> None:
        network, around = self.sd_model, self.around
        around.clear_networks()
        if self._medvram:
            around.empty_device()
            for part in (network.model, self.text.stage):
                stack.enter_context(without_hooks(part, MEDVRAM_HOOK))
                stack.enter_context(placed(part, self.device))
        elif around.vae_to_ram:
            stack.enter_context(placed(network.first_stage_model, CPU))
        stack.enter_context(frozen(network))
        stack.enter_context(attributes(plain(network.model.diffusion_model)))
        stack.enter_context(channels_last(network.model.diffusion_model))


def check_trainable(sd_model: Any) -> None:
    """Raise ModelError, naming its kind, for a loaded checkpoint that WebuiModel cannot train."""
    kinds = {"is_ssd": "an SSD model", "is_sdxl": "an SDXL model", "is_sd3": "a Stable Diffusion 3 model"}
    kind = next((kind for flag, kind in kinds.items() if getattr(sd_model, flag, False)), "")
    conditioning = "" if kind else sd_model.model.conditioning_key
    if conditioning != "crossattn" and not kind:
        inpainting = conditioning == "hybrid" and sd_model.model.diffusion_model.in_channels == 9
        kind = "an inpainting model" if inpainting else f"a model with more than text to go by ({conditioning})"
    encoder = type(getattr(sd_model.cond_stage_model, "wrapped", None)).__name__
    if not kind and encoder not in CLIPS:
        kind = f"a model with another text encoder than CLIP ({encoder})"
    if not kind and sd_model.parameterization not in PREDICTIONS:
        kind = f"a model that predicts neither noise nor v ({sd_model.parameterization})"
    if kind:
        message = f"{sd_model.sd_checkpoint_info.model_name} is {kind}; {LATER} Choose another checkpoint."
        raise ModelError(message)


def _dtype(module: torch.nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
