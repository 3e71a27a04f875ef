"""An embedding: a name for prompts and the vectors that it stands for.

V vectors, D width of a text encoder's token embeddings, m tokens of a text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.prompts import escaped

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

LEARNED_FROM = "learned_from"  # in the info of an embedding that did not learn from images
FAMILIES = {  # width of the token embeddings by text encoder -> the models that have these widths
    (("clip_l", 768),): "SD 1.x",
    (("clip_h", 1024),): "SD 2.x",
    (("clip_g", 1280), ("clip_l", 768)): "SDXL",
    (("clip_l", 64),): "embedded",
    (("clip_l", 768), ("t5", 4096)): "Flux",  # only converted: see formats.read
    (("clip_g", 1280), ("clip_l", 768), ("t5", 4096)): "SD 3",
    (("t5", 4096),): "T5",
}


class _Vectors:
    """The field `vectors`: arrays are converted to tensors on first use, so that reading a file does not import torch."""

    def __get__(self, embedding: Embedding | None, owner: type[Embedding] | None = None) -> dict[str, Tensor]:
        if embedding is None:
            raise AttributeError  # no default value
        stored = embedding.__dict__["_stored"]
        if any(isinstance(each, np.ndarray) for each in stored.values()):
            import torch

            stored = {name: torch.from_numpy(each) for name, each in embedding.arrays.items()}
            embedding.__dict__["_stored"] = stored
        return stored

    def __set__(self, embedding: Embedding, value: Mapping[str, Tensor | NDArray[np.float32]]) -> None:
        embedding.__dict__["_stored"] = value


@dataclass(frozen=True)
class Embedding:
    """Vectors by text encoder, each (V, D) float32 on the CPU: SD 1.x `clip_l`, SD 2.x `clip_h`, SDXL `clip_l` and `clip_g`.

    It takes tensors or NumPy arrays: `vectors` returns tensors, `arrays` the same numbers without importing torch.
    `step` counts completed optimizer updates. `info` holds what else the file says about it, for display.
    """

    name: str
    vectors: _Vectors = _Vectors()
    step: int = 0
    checkpoint: str | None = None
    checkpoint_hash: str | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise EmbeddingFormatError for vectors that no text encoder can use."""
        stored = self._stored
        if not stored:
            message = f"The embedding {self.name!r} has no vectors."
            raise EmbeddingFormatError(message)
        for encoder, vectors in stored.items():
            floating = vectors.dtype.kind == "f" if isinstance(vectors, np.ndarray) else vectors.is_floating_point()
            if vectors.ndim != 2 or 0 in vectors.shape or not floating:
                dtype = str(vectors.dtype).removeprefix("torch.")
                message = (
                    f"The embedding {self.name!r} has {dtype} numbers of shape {tuple(vectors.shape)} "
                    f"for {encoder}; expected floating-point numbers of shape (vectors, width)."
                )
                raise EmbeddingFormatError(message)
        if len({len(vectors) for encoder, vectors in stored.items() if encoder != "t5"}) > 1:
            counts = ", ".join(f"{encoder}: {len(vectors)}" for encoder, vectors in stored.items())
            message = f"The embedding {self.name!r} has different numbers of vectors for its text encoders ({counts})."
            raise EmbeddingFormatError(message)

    @property
    def _stored(self) -> Mapping[str, Tensor | NDArray[np.float32]]:
        return self.__dict__["_stored"]

    @property
    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The vectors as NumPy arrays by text encoder, each (V, D)."""
        return {name: _array(each) for name, each in self._stored.items()}

    @property
    def num_vectors(self) -> int:
        """V, the number of tokens that it takes in a prompt."""
        return len(next(iter(self._stored.values())))

    @property
    def widths(self) -> dict[str, int]:
        """D by text encoder."""
        return {encoder: vectors.shape[1] for encoder, vectors in self._stored.items()}

    @property
    def family(self) -> str:
        """The model family that it was made for, for display."""
        widths = tuple(sorted(self.widths.items()))
        return FAMILIES.get(widths) or "unknown (" + ", ".join(f"{name} {width}" for name, width in widths) + ")"

    def with_vectors(self, vectors: dict[str, Tensor], step: int) -> Embedding:
        """The same embedding after training."""
        return replace(self, vectors=vectors, step=step)

    def renamed(self, name: str) -> Embedding:
        """The same embedding under another name."""
        return replace(self, name=name, vectors=self._stored)


def described_family(family: str, widths: Mapping[str, int]) -> str:
    """A family with its widths, which the description of an unknown one contains."""
    sizes = ", ".join(f"{encoder} {width}" for encoder, width in widths.items())
    return f"{family} ({sizes})" if family in FAMILIES.values() else family


def _array(vectors: Tensor | NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors if isinstance(vectors, np.ndarray) else vectors.detach().cpu().float().numpy()


def negative_name(name: str) -> str:
    """The name of an embedding's negative, which is trained with it, as by DreamArtist."""
    return f"{name}-neg"


def dreamartist_name(name: str) -> str:
    """The name of a negative that DreamArtist's own extension for the WebUI trained."""
    return f"{name}-uc"


def unwanted(prompt: str, name: str) -> str:
    """The negative prompt of a DreamArtist training: the prompt with the negative embedding's name in place of the name.

    Extra networks such as <lora:...> are left out.
    """
    text = re.sub(r"\s*<\w+:[^<>]*>", "", prompt).strip(" ,")
    return re.sub(word_pattern(name), lambda found: negative_name(found[0]), text)


def word_pattern(name: str) -> str:
    """A regular expression that finds an embedding's name in a prompt, in any case, but not within a longer word."""
    return rf"(?i)(?<![\w-]){re.escape(escaped(name))}(?![\w-])"


def averaged_name(name: str) -> str:
    """The name of the copy that holds the moving average of an embedding."""
    return f"{name}-ema"


def encoder_of_width(width: int) -> str:
    """The text encoder that a single tensor belongs to: a file with one tensor does not name it."""
    return {1024: "clip_h", 1280: "clip_g"}.get(width, "clip_l")


def initial_vectors(tokens: Tensor, num_vectors: int) -> Tensor:
    """(V, D) from the init text's (m, D) token embeddings, row i being token i * m // V as in the WebUI; zeros if m is 0."""
    import torch

    m = len(tokens)
    if m == 0:
        return tokens.new_zeros(num_vectors, tokens.shape[1], dtype=torch.float32)
    rows = torch.arange(num_vectors) * m // num_vectors
    return tokens[rows].detach().to(torch.float32).clone()  # (V, D)
