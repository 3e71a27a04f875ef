"""The one seam towards a network: what training needs from a Stable Diffusion, whoever has loaded it.

B batch, C latent channels, H W latent height and width, V vectors, D width of a text encoder's token embeddings, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError
from ti_trainer.prompts import TokenizedPrompt

PredictionType = Literal["epsilon", "v_prediction"]
Vectors = Mapping[str, Tensor]  # one embedding's vectors by text encoder, each (V, D)


@dataclass(frozen=True)
class Conditioning:
    """What the text says to the U-Net: hidden (B, T, width), and for models that want more, their extras by name."""

    hidden: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)


class DiffusionModel(Protocol):
    """A loaded checkpoint. Latents are scaled as the U-Net expects them; pixels are (B, 3, 8 H, 8 W) in [-1, 1]."""

    name: str
    checkpoint_hash: str | None
    device: torch.device
    alphas_cumprod: Tensor  # (number of training timesteps,) on the device
    prediction_type: PredictionType
    widths: Mapping[str, int]  # D by text encoder
    default_size_px: int
    needs_loss_scaling: bool  # whether gradients could vanish in fp16

    def training(self) -> AbstractContextManager[None]:
        """Within it the weights need no gradients and the network is ready to train through; afterwards all is as before."""
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

    def encode_prompts(self, prompts: Sequence[str], words: Mapping[str, Vectors]) -> Conditioning:
        """The conditioning of B prompts in which every key of `words` stands for its vectors; differentiable in them."""
        ...

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
        """The U-Net's prediction (B, C, H, W), of the noise or of v as `prediction_type` says; timesteps (B,)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of latents, with gradient."""
        ...


def check_fits(model: DiffusionModel, embedding: Embedding) -> None:
    """Raise ConfigError if the embedding is for another kind of model."""
    if dict(model.widths) != embedding.widths:
        expected = ", ".join(f"{encoder} {width}" for encoder, width in model.widths.items())
        found = ", ".join(f"{encoder} {width}" for encoder, width in embedding.widths.items())
        message = (
            f"The embedding {embedding.name!r} is for another kind of model ({embedding.family}: {found}) than "
            f"{model.name} ({expected}): choose a checkpoint of its kind, or create a new embedding."
        )
        raise ConfigError(message)
