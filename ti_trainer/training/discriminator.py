"""A user's own image classifier as a loss: how far generated pictures are from a class. Knows no run and no options.

TorchScript is a program: it is run only where whoever started ours allowed it. Of a folder only numbers are read.

B pictures, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ti_trainer.errors import ConfigError

TORCHSCRIPT = (".pt", ".pth", ".ts", ".torchscript")
WEIGHTS, CONFIG = "model.safetensors", "config.json"  # transformers reads no other names
SIDE = 384  # what DreamArtist's classifier is fed, with ImageNet's mean and deviation
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Discriminator:
    """1 - the probability of a class, (B,), of pixels (B, 3, height, width) in [-1, 1]; differentiable."""

    logits: Logits
    wanted: int
    side: int
    mean: Tensor  # (3, 1, 1), as the deviation
    std: Tensor

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pictures are fitted to a square, as classifiers are used, and may be of any shape."""
        pictures = interpolate(pixels.float(), (self.side, self.side), mode="bicubic", antialias=True) / 2 + 0.5
        return 1 - self.logits((pictures - self.mean) / self.std).float().softmax(1)[:, self.wanted]


def load(path: Path, wanted: int, device: torch.device, *, torchscript: bool = False) -> Discriminator:
    """From a folder in which transformers keeps a classifier, or, if allowed, a TorchScript file; else ConfigError."""
    check(path, torchscript=torchscript)
    path = path.parent if path.name == WEIGHTS else path
    try:
        logits = _from_folder(path, device) if path.is_dir() else _from_script(path, device)
        side, *looks = _looks(path) if path.is_dir() else (SIDE, *IMAGENET)
        mean, std = (torch.tensor(each, dtype=torch.float32, device=device).view(3, 1, 1) for each in looks)
        found = Discriminator(logits, wanted, side, mean, std)
        classes = _classes(found, device)
        if 0 <= wanted < classes:
            _check_teaches(found, device)
    except ConfigError:
        raise
    except Exception as error:  # whatever a strange file provokes
        said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        message = f"Discriminator: {path} cannot be used as an image classifier ({said})."
        raise ConfigError(message, "discriminator") from error
    if not 0 <= wanted < classes:
        message = f"Class of the discriminator: found {wanted}, expected 0 to {classes - 1}: {path.name} knows {classes}."
        raise ConfigError(message, "discriminator_class")
    return found


def check(path: Path, *, torchscript: bool = False) -> None:
    """ConfigError if it cannot be one, by its name; without its .safetensors transformers 4.30 would unpickle a folder."""
    folder = path.parent if path.name == WEIGHTS else path
    is_script = path.is_file() and path.suffix.lower() in TORCHSCRIPT
    if all((folder / name).is_file() for name in (WEIGHTS, CONFIG)) or (is_script and torchscript):
        return
    wanted = f"a folder with {CONFIG} and {WEIGHTS} of an image classifier of transformers"
    if torchscript:
        message = f"Discriminator: found {path}, expected a TorchScript file ({', '.join(TORCHSCRIPT)}), or {wanted}."
    elif is_script:
        message = (
            f"Discriminator: found {path}, a TorchScript file, which can run any code; expected {wanted}. Save your "
            "classifier like that. TorchScript is run only by our command line, and only if it is named there itself or "
            "allowed there with --allow-torchscript."
        )
    else:
        message = f"Discriminator: found {path}, expected {wanted}."
    raise ConfigError(message, "discriminator")


def _classes(found: Discriminator, device: torch.device) -> int:
    """K; ConfigError unless it makes (B, K) of pictures."""
    with torch.no_grad():
        logits = found.logits(torch.zeros(1, 3, found.side, found.side, device=device))
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        message = f"Discriminator: found an output of {shape} for one picture, expected (1, classes), two or more."
        raise ConfigError(message, "discriminator")
    return logits.shape[1]


def _check_teaches(found: Discriminator, device: torch.device) -> None:
    """ConfigError unless pictures can learn from it: its judgement and the gradient of that are numbers."""
    pixels = torch.zeros(1, 3, found.side, found.side, device=device).requires_grad_()
    with torch.enable_grad():
        judgement = found(pixels).sum()
    gradient = torch.autograd.grad(judgement, pixels)[0] if judgement.requires_grad else None
    if gradient is None or not bool(judgement.isfinite() & gradient.isfinite().all()):
        what = "no gradient" if gradient is None else "no numbers"
        message = (
            f"Discriminator: found one that makes {what} of a picture, expected a judgement that pictures can learn from: "
            "export it without no_grad, and with the right image_mean and image_std."
        )
        raise ConfigError(message, "discriminator")


def _from_script(file: Path, device: torch.device) -> Logits:
    network = torch.jit.load(str(file), map_location=device).float().eval()
    for weights in network.parameters():
        weights.requires_grad_(False)
    return network


def _from_folder(folder: Path, device: torch.device) -> Logits:
    from transformers import AutoModelForImageClassification

    json.loads((folder / CONFIG).read_text(encoding="utf-8"), object_hook=_check_own_code)
    network: nn.Module = AutoModelForImageClassification.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    network.to(device, torch.float32).eval().requires_grad_(False)
    return lambda pictures: network(pixel_values=pictures).logits


def _check_own_code(settings: dict[str, object]) -> None:
    """ValueError for a name of code that transformers 5 would download and run in the place of its own."""
    for name, value in settings.items():
        if name.endswith("_implementation") and value not in (None, "eager", "sdpa"):
            message = f"its {CONFIG} asks for {name} {value!r:.100}, which can be code from elsewhere"
            raise ValueError(message)


def _looks(folder: Path) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Side, mean and deviation of the pictures that it was trained with."""
    file = folder / "preprocessor_config.json"
    told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    size = told.get("size", SIDE)
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge") or SIDE
    return int(size), tuple(told.get("image_mean", IMAGENET[0])), tuple(told.get("image_std", IMAGENET[1]))
