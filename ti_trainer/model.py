"""The one seam towards a network: what training needs from a Stable Diffusion, whoever has loaded it.

SD 1.x, SD 2.x, SDXL and inpainting models differ behind it, never before it. B batch, C latent channels, H W latent height
and width, V vectors, D width of a text encoder's token embeddings, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import group_norm, interpolate

from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError, ModelError
from ti_trainer.functional.objective import PredictionType
from ti_trainer.prompts import TokenizedPrompt

Compile = Literal["auto", "on", "off"]
MemoryMode = Literal["auto", "none", "offload-vae", "checkpointing", "8bit", "offload-text", "offload-all"]
Vectors = Mapping[str, Tensor]  # one embedding's vectors by text encoder, each (V, D)


@dataclass(frozen=True)
class Conditioning:
    """What the text says to the U-Net: hidden (B, T, width), and for SDXL pooled (B, width), read at the end of text."""

    hidden: Tensor
    pooled: Tensor | None = None


@dataclass(frozen=True)
class ImageConditioning:
    """What some U-Nets are told of images besides text; others do not look at it.

    `sizes` (B, 6) float32 is SDXL's size and crop conditioning (arXiv:2307.01952, 2.2) in px: original height and width, top
    and left of the crop in the resized image, target height and width. `masked` (B, 1 + C, H, W) is for inpainting models:
    1 where they shall paint, and the latents of the image without that.
    """

    sizes: Tensor
    masked: Tensor | None = None

    def of(self, rows: slice) -> ImageConditioning:
        """Of these images alone."""
        return ImageConditioning(self.sizes[rows], None if self.masked is None else self.masked[rows])

    def repeat(self, times: int) -> ImageConditioning:
        """The same images that many times, (B times, ...)."""
        if times == 1:
            return self
        masked = None if self.masked is None else self.masked.repeat(times, 1, 1, 1)
        return ImageConditioning(self.sizes.repeat(times, 1), masked)


@dataclass(frozen=True)
class ModelSpec:
    """What a checkpoint is, found out once when it is opened; as a str, in words."""

    family: str
    prediction_type: PredictionType = "epsilon"
    zero_terminal_snr: bool = False
    inpainting: bool = False

    def __str__(self) -> str:
        words = [f"{self.family} inpainting" if self.inpainting else self.family]
        words.append("v prediction" if self.prediction_type == "v_prediction" else "epsilon prediction")
        return ", ".join(words + ["zero terminal SNR"] * self.zero_terminal_snr)


class DiffusionModel(Protocol):
    """A loaded checkpoint. Latents are scaled as the U-Net expects them; pixels are (B, 3, 8 H, 8 W) in [-1, 1]."""

    name: str
    spec: ModelSpec
    checkpoint_hash: str | None
    device: torch.device
    alphas_cumprod: Tensor  # (number of training timesteps,) on the device
    widths: Mapping[str, int]  # D by text encoder
    default_size_px: int
    needs_loss_scaling: bool  # whether gradients could vanish in fp16

    def training(self) -> AbstractContextManager[None]:
        """Within it the weights need no gradients and the network is ready to train through; afterwards all is as before."""
        ...

    def fit_memory(self, places: int, decoded: int = 0, mode: MemoryMode = "auto") -> str:
        """Choose what gives way in training batches of this many latent places (B H W); in words, "" for no choice.

        `decoded`: so many places are decoded at once in each step, for losses of pixels. `mode`: what somebody chose.
        """
        ...

    def compile(self, when: Compile, steps: int, sizes: int, begins: Callable[[], None]) -> str:
        """Have the network compiled for so many steps on images of so many sizes; in words, "" if nothing is to be said.

        After `fit_memory`, for what is trained until our turn with the host is over. `begins` is called whenever a step is
        about to take much longer for it. What fails of it later, `give_way` gives up.
        """
        ...

    def reduce_memory(self, error: Exception) -> str:
        """Give up the next thing so that what failed of `error` can be tried once more; in words, "" if nothing helps."""
        ...

    def tokenize(self, prompt: str, words: Mapping[str, Vectors]) -> TokenizedPrompt:
        """The token ids of a prompt as they are fed, in chunks, and where the words' vectors go in them."""
        ...

    def token_text(self, token_id: int) -> str:
        """What a token stands for, to be read by people."""
        ...

    def token_embeddings(self, text: str) -> dict[str, Tensor]:
        """(m, D) by text encoder: the embeddings of a text's m tokens, for init text."""
        ...

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents' distribution, each (B, C, H, W) float32."""
        ...

    def encode_masked(self, pixels: Tensor, masks: Tensor | None) -> Tensor | None:
        """(B, 1 + C, H, W), what an inpainting model is shown of images, and None for all others.

        `masks` (B, 1, 8 H, 8 W) are above 0.5 where it shall paint; None: everywhere.
        """
        ...

    def image_attention(self, pixels: Tensor) -> Tensor:
        """(H W, H W): how much each latent place of one image (1, 3, 8 H, 8 W) attends to each other in the VAE's encoder.

        Rows sum to one. ModelError for a VAE without attention.
        """
        ...

    def encode_prompts(self, prompts: Sequence[str], words: Mapping[str, Vectors]) -> Conditioning:
        """The conditioning of B prompts in which every key of `words` stands for its vectors; differentiable in them."""
        ...

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, cond: Conditioning, images: ImageConditioning) -> Tensor:
        """The U-Net's prediction (B, C, H, W), of the noise or of v as `spec` says; timesteps (B,)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of latents, not clamped; gradients of them have to be taken within `decoding`."""
        ...

    def decoding(self) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """Within it there is `decode`, and the VAE stays where it computes, for the way back through it."""
        ...


INPAINTING_CHANNELS = 9  # that a U-Net takes: noisy latents, the mask, latents of the rest


def masked_channels(
    encode_images: Callable[[Tensor], tuple[Tensor, Tensor]], pixels: Tensor, masks: Tensor | None
) -> Tensor:
    """`encode_masked` of an inpainting model: grey where it shall paint, as in its training and as the WebUI generates."""
    hidden = torch.ones_like(pixels[:, :1]) if masks is None else (masks > 0.5).to(pixels)
    latents, _ = encode_images(pixels * (1 - hidden))
    return torch.cat([interpolate(hidden.to(latents), latents.shape[-2:]), latents], 1)  # (B, 1 + C, H, W)


def attention_of(block: object, names: Sequence[str], encode: Callable[[], object]) -> Tensor:
    """`image_attention` of a block with one head, by what `encode` feeds it; `names`: its norm, query and key."""
    if not all(hasattr(block, name) for name in names):
        message = "This model's VAE has no attention in its encoder: it cannot spread masks. Paint them as they shall be."
        raise ModelError(message)
    norm, query, key = (getattr(block, name) for name in names)
    fed: list[Tensor] = []
    hook = block.register_forward_pre_hook(lambda _, given: fed.append(given[0]))
    try:
        encode()
    finally:
        hook.remove()
    normed = group_norm(fed[0].float(), norm.num_groups, norm.weight.float(), norm.bias.float(), norm.eps)  # (1, c, H, W)
    places = normed[0].flatten(1).T  # (H W, c)
    # The original code's are 1 x 1 convolutions, whose weights are (c, c, 1, 1).
    asked, offered = (places @ each.weight.float().flatten(1).T + each.bias.float() for each in (query, key))
    return (asked @ offered.T / asked.shape[1] ** 0.5).softmax(1)  # (H W, H W)


def check_fits(model: DiffusionModel, embedding: Embedding) -> None:
    """Raise ConfigError if the embedding is for another kind of model."""
    if dict(model.widths) != embedding.widths:
        expected = ", ".join(f"{encoder} {width}" for encoder, width in model.widths.items())
        found = ", ".join(f"{encoder} {width}" for encoder, width in embedding.widths.items())
        message = (
            f"The embedding {embedding.name!r} is for another kind of model ({embedding.family}: {found}) than "
            f"{model.name} ({model.spec.family}: {expected}): choose a checkpoint of its kind, or create a new embedding."
        )
        raise ConfigError(message)
