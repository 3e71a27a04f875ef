"""A user's own image classifier as a loss: how far generated images are from a class. Knows no run and no options.

TorchScript is a program: it is run only where whoever started ours allowed it. Of a folder only numbers are read.

B images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ti_trainer.errors import ConfigError
from ti_trainer.formats import network_config

TORCHSCRIPT = (".pt", ".pth", ".ts", ".torchscript")
WEIGHTS, CONFIG = "model.safetensors", "config.json"  # transformers reads no other names
SIDE = 384  # what DreamArtist's classifier is fed, with ImageNet's mean and deviation
LARGEST_SIDE = 1024
SLACK = 2**20  # numbers that a network makes itself, such as places
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
        """Images are fitted to a square, as classifiers are used, and may be of any shape."""
        images = interpolate(pixels.float(), (self.side, self.side), mode="bicubic", antialias=True) / 2 + 0.5
        return 1 - self.logits((images - self.mean) / self.std).float().softmax(1)[:, self.wanted]


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
    """K; ConfigError unless it makes (B, K) of images."""
    with torch.no_grad():
        logits = found.logits(torch.zeros(1, 3, found.side, found.side, device=device))
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        message = f"Discriminator: found an output of {shape} for one image, expected (1, classes), two or more."
        raise ConfigError(message, "discriminator")
    return logits.shape[1]


def _check_teaches(found: Discriminator, device: torch.device) -> None:
    """ConfigError unless images can learn from it: its judgement and the gradient of that are numbers."""
    pixels = torch.zeros(1, 3, found.side, found.side, device=device).requires_grad_()
    with torch.enable_grad():
        judgement = found(pixels).sum()
    gradient = torch.autograd.grad(judgement, pixels)[0] if judgement.requires_grad else None
    if gradient is None or not bool(judgement.isfinite() & gradient.isfinite().all()):
        what = "no gradient" if gradient is None else "no numbers"
        message = (
            f"Discriminator: found one that makes {what} of an image, expected a judgement that images can learn from: "
            "export it without no_grad, and with the right image_mean and image_std."
        )
        raise ConfigError(message, "discriminator")


def _from_script(file: Path, device: torch.device) -> Logits:
    network = torch.jit.load(str(file), map_location=device).float().eval()
    for weights in network.parameters():
        weights.requires_grad_(False)
    return network


def _from_folder(folder: Path, device: torch.device) -> Logits:
    from transformers import AutoConfig, AutoModelForImageClassification

    network_config.read(folder / CONFIG)
    safe = {"local_files_only": True, "trust_remote_code": False}
    with network_config.offline():
        _check_size(folder / WEIGHTS, AutoConfig.from_pretrained(folder, **safe))
        network: nn.Module = AutoModelForImageClassification.from_pretrained(folder, use_safetensors=True, **safe)
    network.to(device, torch.float32).eval().requires_grad_(False)
    return lambda images: network(pixel_values=images).logits


def _check_size(weights: Path, config: Any) -> None:
    """ValueError for a network that is much larger than its weights: what they lack would be filled with random numbers."""
    from transformers import AutoModelForImageClassification

    try:
        with torch.device("meta"):
            network = AutoModelForImageClassification.from_config(config, trust_remote_code=False)
    except (RuntimeError, NotImplementedError) as error:
        if "meta" in str(error):  # transformers 4.30 asks for numbers while it builds some kinds, and those have none here
            return
        raise
    asked = sum(each.numel() for each in (*network.parameters(), *network.buffers()))
    with safe_open(weights, "pt") as file:
        there = sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - it is no dict
    if asked > 2 * there + SLACK:
        message = f"its {CONFIG} describes a network of {asked:,} numbers, and {WEIGHTS} holds {there:,}"
        raise ValueError(message)


def _looks(folder: Path) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Side, mean and deviation of the images that it was trained with."""
    file = folder / "preprocessor_config.json"
    told = network_config.read(file) if file.is_file() else {}
    size = told.get("size", SIDE)
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge") or SIDE
    if not (type(size) is int and 1 <= size <= LARGEST_SIDE):
        message = f"its {file.name} asks for images of size {size!r:.50}, expected 1 to {LARGEST_SIDE} pixels"
        raise ValueError(message)
    return size, tuple(told.get("image_mean", IMAGENET[0])), tuple(told.get("image_std", IMAGENET[1]))
