"""A LoRA (arXiv:2106.09685): changes of low rank to the weights of a model's layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNET, TEXT_ENCODER, TEXT_ENCODER_2 = NETWORKS = ("unet", "text_encoder", "text_encoder_2")


@dataclass(frozen=True, eq=False)
class LoraLayer:
    """`scale` times up @ down is added to a layer's weight, with rank r.

    `down` is (r, inputs), or (r, inputs, height, width) for a convolution; `up` is (outputs, r) or (outputs, r, 1, 1).
    """

    down: NDArray[Any]
    up: NDArray[Any]
    scale: float


@dataclass(frozen=True, eq=False)
class Lora:
    """The layers by network, one of NETWORKS, and the layer's name with underscores instead of dots.

    The names are those of the file: diffusers' or the original code's. `embeddings` are the names of those that are bundled
    with the LoRA, and `file_hash` the WebUI's short hash of the file.
    """

    name: str
    layers: Mapping[tuple[str, str], LoraLayer]
    embeddings: tuple[str, ...] = ()
    file_hash: str = ""
