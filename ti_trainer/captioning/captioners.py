"""The captioners that can be chosen: our own, one file each in this folder, and the host's.

To add a captioner, add a file to this folder with a LABEL for the page, `load(config, device)`, which returns a Captioner or
raises ConfigError, and, if Quick train may choose it, `is_installed(config)`. The file's name is its name in the option
`captioners`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType

import torch
from PIL import Image

from ti_trainer import captioning
from ti_trainer.captioning.captioner import Captioner, HostCaptioner, Tags
from ti_trainer.captioning.tags import key, tags_text
from ti_trainer.config.preprocessing import PreprocessConfig
from ti_trainer.data.open_image import on_white
from ti_trainer.errors import ConfigError


def available() -> dict[str, ModuleType]:
    """Our own captioners by name: the files of this folder with a LABEL. They import their packages only in `load`."""
    names = [each.name for each in pkgutil.iter_modules(captioning.__path__)]
    modules = {name: importlib.import_module(f"{captioning.__name__}.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "LABEL")}


def labels(of_host: Mapping[str, HostCaptioner] | None = None) -> dict[str, str]:
    """The label of each captioner by name: our own, then the host's."""
    own = {name: module.LABEL for name, module in available().items()}
    return own | {name: each.label for name, each in (of_host or {}).items()}


def installed(config: PreprocessConfig, of_host: Mapping[str, HostCaptioner] | None = None) -> list[str]:
    """The names of captioners that work without a download: the host's, then our own."""
    own = [name for name, module in available().items() if hasattr(module, "is_installed") and module.is_installed(config)]
    return [name for name, each in (of_host or {}).items() if each.is_installed()] + own


def chosen(config: PreprocessConfig, of_host: Mapping[str, HostCaptioner] | None = None) -> list[str]:
    """The names in the option `captioners`; ConfigError for an unknown one."""
    names = list(dict.fromkeys(name.strip() for name in config.captioners.split(",") if name.strip()))
    known = labels(of_host)
    unknown = [name for name in names if name not in known]
    if unknown:
        message = f"Captioners: found {', '.join(unknown)}, expected names from {', '.join(known)}."
        raise ConfigError(message, "captioners")
    return names


@contextmanager
def opened(
    config: PreprocessConfig, of_host: Mapping[str, HostCaptioner] | None = None, device: str | torch.device = "auto"
) -> Iterator[Callable[[Image.Image], str]]:
    """Load the chosen captioners, and yield one function that captions an upright image of any mode.

    Models are freed afterwards. ConfigError if one cannot be loaded. Do not hold `Host.lock`: the host's captioners wait for
    it at each image.
    """
    names, place, own = chosen(config, of_host), _device(device), available()
    loaded: list[Captioner] = []
    try:
        with ExitStack() as stack:
            for name in names:
                if name in own:
                    loaded.append(own[name].load(config, place))
                elif of_host:
                    loaded.append(stack.enter_context(of_host[name].open(config)))
            yield lambda image: _caption(image, loaded, config)
    finally:
        loaded.clear()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _caption(image: Image.Image, captioners: list[Captioner], config: PreprocessConfig) -> str:
    """The captions of all captioners in their order; a tag that an earlier one found is not repeated."""
    image = on_white(image)
    parts: list[str] = []
    seen: set[str] = set()
    for captioner in captioners:
        found = captioner(image)
        if not isinstance(found, str):
            new: Tags = [each for each in found if key(each[0]) not in seen]
            seen |= {key(tag) for tag, _ in new}
            found = tags_text(new, config)
        parts.append(found.strip())
    return ", ".join(filter(None, parts))


def _device(name: str | torch.device) -> torch.device:
    """A torch device; "auto" is CUDA, else MPS, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        message = f"The device {name!r} cannot be used here ({str(error).splitlines()[0]}): try auto or cpu."
        raise ConfigError(message) from error
