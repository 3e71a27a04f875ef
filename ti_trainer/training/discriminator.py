"""An image classifier of the user's as a loss: how far generated images are from a class.

A TorchScript file can run any code, so it is loaded only where the person who started the program allowed it. From a folder,
only weights are loaded.

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
WEIGHTS, CONFIG = "model.safetensors", "config.json"  # the only names that transformers reads
SIDE = 384  # input size of DreamArtist's classifier, with the mean and standard deviation of ImageNet
LARGEST_SIDE = 1024
SLACK = 2**20  # values that a network creates itself, such as position ids
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Discriminator:
    """1 minus the probability of a class (B,), for pixels (B, 3, height, width) in [-1, 1]; differentiable."""

    logits: Logits
    wanted: int
    side: int
    mean: Tensor  # (3, 1, 1)
    std: Tensor  # (3, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Resize images of any shape to the classifier's square input, as is usual, and classify them."""
        images = interpolate(pixels.float(), (self.side, self.side), mode="bicubic", antialias=True) / 2 + 0.5
        return 1 - self.logits((images - self.mean) / self.std).float().softmax(1)[:, self.wanted]


def load(path: Path, wanted: int, device: torch.device, *, torchscript: bool = False) -> Discriminator:
    """Load a transformers folder or, if allowed, a TorchScript file; ConfigError if it is no usable classifier."""
    check(path, torchscript=torchscript)
    path = path.parent if path.name == WEIGHTS else path
    try:
        logits = _from_folder(path, device) if path.is_dir() else _from_script(path, device)
        side, *normalization = input_format(path) if path.is_dir() else (SIDE, *IMAGENET)
        mean, std = (torch.tensor(each, dtype=torch.float32, device=device).view(3, 1, 1) for each in normalization)
        found = Discriminator(logits, wanted, side, mean, std)
        classes = _classes(found, device)
        if 0 <= wanted < classes:
            _check_differentiable(found, device)
    except ConfigError:
        raise
    except Exception as error:  # an unusual file can raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        message = f"Discriminator: {path} cannot be used as an image classifier ({reason})."
        raise ConfigError(message, "discriminator") from error
    if not 0 <= wanted < classes:
        message = f"Class of the discriminator: found {wanted}, expected 0 to {classes - 1}: {path.name} knows {classes}."
        raise ConfigError(message, "discriminator_class")
    return found


def check(path: Path, *, torchscript: bool = False) -> None:
    """Raise ConfigError if the file names are wrong; without .safetensors transformers 4.30 would unpickle weights."""
    folder = path.parent if path.name == WEIGHTS else path
    is_script = path.is_file() and path.suffix.lower() in TORCHSCRIPT
    if all((folder / name).is_file() for name in (WEIGHTS, CONFIG)) or (is_script and torchscript):
        return
    wanted = f"a folder with {CONFIG} and {WEIGHTS} of an image classifier of transformers"
    if torchscript:
        message = f"Discriminator: found {path}, expected a TorchScript file ({', '.join(TORCHSCRIPT)}), or {wanted}."
    elif is_script:
        message = (
            f"Discriminator: found {path}, a TorchScript file, which can run any code; expected {wanted}. TorchScript files "
            "are used only if the person who started the program has named the file or allowed them on the command line."
        )
    else:
        message = f"Discriminator: found {path}, expected {wanted}."
    raise ConfigError(message, "discriminator")


def _classes(found: Discriminator, device: torch.device) -> int:
    """The number of classes K; ConfigError unless the output for images is (B, K)."""
    with torch.no_grad():
        logits = found.logits(torch.zeros(1, 3, found.side, found.side, device=device))
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        message = f"Discriminator: found an output of {shape} for one image, expected (1, classes), two or more."
        raise ConfigError(message, "discriminator")
    return logits.shape[1]


def _check_differentiable(found: Discriminator, device: torch.device) -> None:
    """Raise ConfigError unless the loss and its gradient are finite."""
    pixels = torch.zeros(1, 3, found.side, found.side, device=device).requires_grad_()
    with torch.enable_grad():
        loss = found(pixels).sum()
    gradient = torch.autograd.grad(loss, pixels)[0] if loss.requires_grad else None
    if gradient is None or not bool(loss.isfinite() & gradient.isfinite().all()):
        what = "no gradient" if gradient is None else "no finite output"
        message = (
            f"Discriminator: found a classifier with {what} for an image, expected a differentiable one: export it without "
            "no_grad, and with the right image_mean and image_std."
        )
        raise ConfigError(message, "discriminator")


def _from_script(file: Path, device: torch.device) -> Logits:
    network: nn.Module = torch.jit.load(str(file), map_location=device)  # type: ignore[no-untyped-call]  # torch has no types
    network.float().eval()
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
    """Raise ValueError if the network is much larger than its weights: missing ones would be initialized at random."""
    from transformers import AutoModelForImageClassification

    try:
        with torch.device("meta"):
            network = AutoModelForImageClassification.from_config(config, trust_remote_code=False)
    except (RuntimeError, NotImplementedError) as error:
        if "meta" in str(error):  # transformers 4.30 reads values while it builds some networks
            return
        raise
    expected = sum(each.numel() for each in (*network.parameters(), *network.buffers()))
    with safe_open(weights, "pt") as file:
        found = sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - it is no dict
    if expected > 2 * found + SLACK:
        message = f"its {CONFIG} describes a network of {expected:,} values, but {WEIGHTS} has {found:,}"
        raise ValueError(message)


def input_format(folder: Path) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Size, mean and standard deviation of the images that the classifier was trained on."""
    file = folder / "preprocessor_config.json"
    settings = network_config.read(file) if file.is_file() else {}
    size = settings.get("size", SIDE)
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge") or SIDE
    if not (type(size) is int and 1 <= size <= LARGEST_SIDE):
        message = f"its {file.name} asks for images of size {size!r:.50}, expected 1 to {LARGEST_SIDE} pixels"
        raise ValueError(message)
    return size, tuple(settings.get("image_mean", IMAGENET[0])), tuple(settings.get("image_std", IMAGENET[1]))
