"""An embedding: a word and the vectors it stands for. Knows nothing of files, prompts or models.

V vectors, D width of a text encoder's token embeddings, m tokens of a text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.prompts import escaped

FAMILIES = {  # widths of the token embeddings, by text encoder -> the models that have them
    (("clip_l", 768),): "SD 1.x",
    (("clip_h", 1024),): "SD 2.x",
    (("clip_g", 1280), ("clip_l", 768)): "SDXL",
    (("clip_l", 64),): "embedded",
}


@dataclass(frozen=True)
class Embedding:
    """Vectors by text encoder, each (V, D) float32 on the CPU: SD 1.x `clip_l`, SD 2.x `clip_h`, SDXL `clip_l` and `clip_g`.

    `step` counts completed optimizer updates. `info` holds what else a file said of itself, for people to read.
    """

    name: str
    vectors: dict[str, Tensor]
    step: int = 0
    checkpoint: str | None = None
    checkpoint_hash: str | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no text encoder could take; EmbeddingFormatError."""
        if not self.vectors:
            message = f"The embedding {self.name!r} holds no vectors."
            raise EmbeddingFormatError(message)
        for encoder, vectors in self.vectors.items():
            if vectors.ndim != 2 or 0 in vectors.shape or not vectors.is_floating_point():
                message = (
                    f"The embedding {self.name!r} has a {vectors.dtype} tensor of shape {tuple(vectors.shape)} "
                    f"for {encoder}; expected floating-point numbers of shape (vectors, width)."
                )
                raise EmbeddingFormatError(message)
        if len({len(vectors) for vectors in self.vectors.values()}) > 1:
            counts = ", ".join(f"{encoder}: {len(vectors)}" for encoder, vectors in self.vectors.items())
            message = f"The embedding {self.name!r} has different numbers of vectors for its text encoders ({counts})."
            raise EmbeddingFormatError(message)

    @property
    def num_vectors(self) -> int:
        """How many tokens of a prompt it takes."""
        return len(next(iter(self.vectors.values())))

    @property
    def widths(self) -> dict[str, int]:
        """The width that each text encoder must have."""
        return {encoder: vectors.shape[1] for encoder, vectors in self.vectors.items()}

    @property
    def family(self) -> str:
        """The kind of model it was made for, in words."""
        widths = tuple(sorted(self.widths.items()))
        return FAMILIES.get(widths) or "unknown (" + ", ".join(f"{name} {width}" for name, width in widths) + ")"

    def with_vectors(self, vectors: dict[str, Tensor], step: int) -> Embedding:
        """The same word after training."""
        return replace(self, vectors=vectors, step=step)


def negative_name(name: str) -> str:
    """Of the embedding that DreamArtist trains beside another, for what that is not."""
    return f"{name}-neg"


def dreamartist_name(name: str) -> str:
    """Of the negative beside an embedding that DreamArtist's own extension for the WebUI trained."""
    return f"{name}-uc"


def unwanted(prompt: str, name: str) -> str:
    """What a prompt is guided away from, as in training: the same words, with the negative embedding's for the word.

    Without the WebUI's <lora:...> and the like, which are no words.
    """
    text = re.sub(r"\s*<\w+:[^<>]*>", "", prompt).strip(" ,")
    return re.sub(word_pattern(name), lambda found: negative_name(found[0]), text)


def word_pattern(name: str) -> str:
    """A regular expression of an embedding's word as prompts have it, in any case, and not as a part of another one."""
    return rf"(?i)(?<![\w-]){re.escape(escaped(name))}(?![\w-])"


def averaged_name(name: str) -> str:
    """The name of the moving average of an embedding, where it is kept as a copy."""
    return f"{name}-ema"


def encoder_of_width(width: int) -> str:
    """Which text encoder a lone tensor belongs to: files with one tensor do not say."""
    return {1024: "clip_h", 1280: "clip_g"}.get(width, "clip_l")


def initial_vectors(tokens: Tensor, num_vectors: int) -> Tensor:
    """(V, D) from the init text's (m, D) token embeddings, row i being token i * m // V as in the WebUI; none: zeros."""
    m = len(tokens)
    if m == 0:
        return tokens.new_zeros(num_vectors, tokens.shape[1], dtype=torch.float32)
    rows = torch.arange(num_vectors) * m // num_vectors
    return tokens[rows].detach().to(torch.float32).clone()
