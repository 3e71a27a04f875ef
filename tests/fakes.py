"""A tiny DiffusionModel and a Host for it: a step takes a millisecond, and all inputs affect it."""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event as Flag

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from ti_trainer.captioning.captioner import HostCaptioner
from ti_trainer.errors import ConfigError
from ti_trainer.host import GenerationRequest, Host, ModelOptions, ModelReference
from ti_trainer.lora import Lora
from ti_trainer.model import (
    Compile,
    Conditioning,
    CrossAttention,
    DiffusionModel,
    ImageConditioning,
    MemoryMode,
    ModelSpec,
    Vectors,
)
from ti_trainer.prompts import PromptTokenizer, TokenizedPrompt

D = 8


class TinyModel:
    """A small DiffusionModel. B batch, C = 4 latent channels, H W, V vectors, D width of a token."""

    name, checkpoint_hash, device, dtype = "tiny", "0123456789", torch.device("cpu"), torch.float32
    spec, needs_loss_scaling, default_size_px = ModelSpec("tiny"), False, 16
    widths: Mapping[str, int] = {"clip_l": D}

    def __init__(self) -> None:
        self.alphas_cumprod = torch.linspace(0.99, 0.01, 100)
        generator = torch.Generator().manual_seed(0)
        self.mix, self.out = torch.randn(D, D, generator=generator), torch.randn(D, 4, generator=generator)
        self.in_training = False

    @contextmanager
    def training(self) -> Iterator[None]:
        self.in_training = True
        try:
            yield
        finally:
            self.in_training = False

    def fit_memory(self, latent_pixels: int, decoded: int = 0, mode: MemoryMode = "auto") -> str:
        return ""

    def compile(self, when: Compile, steps: int, sizes: int, on_compile: Callable[[], None]) -> str:
        return ""

    def reduce_memory(self, error: Exception) -> str:
        return ""

    def tokenize(self, prompt: str, embeddings: Mapping[str, Vectors]) -> TokenizedPrompt:
        counts = {name: len(each["clip_l"]) for name, each in embeddings.items()}
        split = PromptTokenizer(
            lambda text: [zlib.crc32(w.encode()) % 900 + 1 for w in _split(text)], 998, 999, 999, 997, counts
        )
        return split(prompt)

    def token_text(self, token_id: int) -> str:
        return f"t{token_id}"

    def token_piece(self, token_id: int) -> str:
        return f"t{token_id}</w>" if token_id < 1000 else ""

    def token_tables(self) -> dict[str, Tensor]:
        return {"clip_l": torch.randn(1000, D, generator=torch.Generator().manual_seed(5))}

    def token_embeddings(self, text: str) -> dict[str, Tensor]:
        rows = [torch.randn(D, generator=torch.Generator().manual_seed(zlib.crc32(word.encode()))) for word in text.split()]
        return {"clip_l": torch.stack(rows) if rows else torch.zeros(0, D)}

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        small = avg_pool2d(pixels, 8)
        mean = torch.cat([small, small.mean(1, keepdim=True)], 1)  # (B, C, H, W)
        return mean, torch.full_like(mean, 0.3)

    def image_attention(self, pixels: Tensor) -> Tensor:
        """Latent pixels attend to those of the same colour."""
        colours = avg_pool2d(pixels, 8)[0].flatten(1).T  # (H W, 3)
        return (-10 * torch.cdist(colours, colours)).softmax(1)

    def encode_masked(self, pixels: Tensor, masks: Tensor | None) -> Tensor | None:
        return None

    def encode_prompts(self, prompts: Sequence[str], embeddings: Mapping[str, Vectors]) -> Conditioning:
        hidden = []
        for prompt in prompts:
            found = [embeddings.get(each) or self.token_embeddings(each) for each in _split(prompt)]
            parts = [each["clip_l"] for each in found]
            place = torch.linspace(0.5, 1.5, sum(map(len, parts)))[:, None]  # the order of words counts
            hidden.append((torch.cat(parts) * place @ self.mix).tanh().mean(0, keepdim=True))
        return Conditioning(torch.stack(hidden))  # (B, 1, D)

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, cond: Conditioning, images: ImageConditioning) -> Tensor:
        text = (cond.hidden[:, 0] @ self.out)[..., None, None]  # (B, C, 1, 1)
        return (noisy_latents * text + text * timesteps[:, None, None, None] / 100).tanh()

    @contextmanager
    def cross_attention(self) -> Iterator[Sequence[CrossAttention]]:
        yield []

    def fit_lora(self, lora: Lora) -> str:
        return f"{lora.name} fits."

    @contextmanager
    def with_lora(self, lora: Lora, weight: float) -> Iterator[None]:
        """Text has another effect."""
        before, self.out = self.out, self.out + weight * float(next(iter(lora.layers.values())).down.mean())
        try:
            yield
        finally:
            self.out = before

    def decode(self, latents: Tensor) -> Tensor:
        return interpolate(latents[:, :3], scale_factor=8.0)

    @contextmanager
    def decoding(self) -> Iterator[Callable[[Tensor], Tensor]]:
        yield self.decode


def _split(prompt: str) -> list[str]:
    return re.findall(r"[\w-]+", prompt) or ["nothing"]


@dataclass
class TinyHost:
    """A Host over TinyModel. Generating uses the process's random numbers, as careless hosts do."""

    folder: Path
    model: TinyModel = field(default_factory=TinyModel)
    changes: int = 0
    shown: int = 0
    told: list[tuple[int, int, str]] = field(default_factory=list)
    interrupt: Flag = field(default_factory=Flag)
    template_dirs: Sequence[Path] = ()
    lora_dirs: Sequence[Path] = ()
    samplers: Sequence[str] = ("Euler", "DDIM")
    captioners: Mapping[str, HostCaptioner] = field(default_factory=dict)
    face_models: Sequence[Path] = ()
    defaults: Mapping[str, object] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()
    is_public: bool = False
    torchscript: bool = False

    def __post_init__(self) -> None:
        self.embeddings_dir, self.log_dir = self.folder / "embeddings", self.folder / "logs"

    def describe(self) -> str:
        return self.model.name

    def chosen_model(self) -> ModelReference:
        return ModelReference(self.model.name, hash=self.model.checkpoint_hash)

    def open_model(self, options: ModelOptions | None = None) -> TinyModel:
        return self.model

    @contextmanager
    def lock(self) -> Iterator[TinyHost]:
        yield self

    def interrupted(self) -> bool:
        return self.interrupt.is_set()

    def progress(self, done: int, total: int, text: str) -> None:
        self.told.append((done, total, text))

    def show(self, image: Image.Image) -> None:
        self.shown += 1

    def check_folder(self, folder: Path) -> None:
        if folder.name == "forbidden":
            raise ConfigError("that folder is not for the page")

    def generate(self, model: DiffusionModel, request: GenerationRequest, embeddings: Mapping[str, Vectors]) -> Image.Image:
        shade = int(torch.rand(()) * 255)
        return Image.new("RGB", (16, 16), (shade, shade, shade))

    def embeddings_changed(self) -> None:
        self.changes += 1


_model: type[DiffusionModel] = TinyModel
_host: type[Host] = TinyHost


def paint_mask(folder: Path) -> None:
    """The first image of a folder has a mask as DreamArtist's are: its middle counts most, the rest a little."""
    first = min(folder.glob("*.png"))
    with Image.open(first) as image:
        mask = Image.new("L", image.size, 40)
    mask.paste(220, (16, 16, 48, 48))
    mask.save(first.with_name(f"{first.stem}_att.png"))


RATING, GENERAL, CHARACTER = 9, 0, 4


def make_tagger(
    folder: Path, tags: Mapping[str, tuple[int, NDArray[np.floating]]], *, bias: float = 0.0, channels_last: bool = True
) -> Path:
    """A folder as taggers of the WD14 family have it, with a model that is small and right.

    `tags` holds a category and weights (size, size, 3) for each: how sure it is of a tag is the sigmoid of the bias and the
    sum of pixels (BGR, 0 to 255) times weights.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.stack([each for _, each in tags.values()])  # (T, size, size, 3)
    shape = ["batch", *weights.shape[1:]]
    if not channels_last:
        weights, shape = weights.transpose(0, 3, 1, 2), ["batch", 3, *weights.shape[1:3]]
    table = weights.reshape(len(tags), -1).T.astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"], axis=1),
            helper.make_node("Gemm", ["flat", "weights", "bias"], ["logits"]),
            helper.make_node("Sigmoid", ["logits"], ["output"]),
        ],
        "tagger",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", len(tags)])],
        [
            numpy_helper.from_array(table, "weights"),
            numpy_helper.from_array(np.full(len(tags), bias, np.float32), "bias"),
        ],
    )
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(folder / "model.onnx")
    )
    with (folder / "selected_tags.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["tag_id", "name", "category", "count"])
        rows.writerows([number, name, category, 1000] for number, (name, (category, _)) in enumerate(tags.items()))
    return folder


def colour_tagger(folder: Path, size_px: int = 8) -> Path:
    """A tagger that is sure of red_hair, green_eyes and blue_sky as far as an image's middle is of that colour."""
    tags = {"rating_safe": (RATING, np.ones((size_px, size_px, 3)))}
    middle = slice(size_px // 4, size_px * 3 // 4)
    for channel, name in enumerate(("blue_sky", "green_eyes", "red_hair")):
        weights = np.zeros((size_px, size_px, 3))
        weights[middle, middle] = -0.02 / (size_px / 2) ** 2
        weights[middle, middle, channel] = 0.04 / (size_px / 2) ** 2
        tags[name] = (GENERAL, weights)
    return make_tagger(folder, tags, bias=-2)
