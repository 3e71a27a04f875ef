"""The Captioner interface: a function from an image to a sentence or tags."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from PIL import Image

from ti_trainer.config.preprocessing import PreprocessConfig
from ti_trainer.errors import ConfigError
from ti_trainer.wording import pip_install

Tags = list[tuple[str, float]]  # each tag with its score in [0, 1]
Captioner = Callable[[Image.Image], "str | Tags"]  # takes an upright RGB image


@dataclass(frozen=True)
class HostCaptioner:
    """A captioner of the host, such as the WebUI's interrogator: its label on the page, and what opens it.

    The captioner waits for the host's lock at each image, so call it without holding `Host.lock`. `open` raises ConfigError.
    `is_installed`: whether its model is on this computer, so that nothing has to be downloaded.
    """

    label: str
    open: Callable[[PreprocessConfig], AbstractContextManager[Captioner]]
    is_installed: Callable[[], bool] = lambda: False


def missing_package(package: str, error: ImportError) -> ConfigError:
    """The error to raise if a captioner's package is not installed, or cannot be imported."""
    message = f"This captioner needs the package {package} ({error}): {pip_install(package)}"
    return ConfigError(message, "captioners")
