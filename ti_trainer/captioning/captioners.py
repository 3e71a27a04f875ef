"""What says in words what is in an image. Each file here is one captioner; adding one is adding a file.

Such a file has a LABEL for people and `load(config, device)`, which gives a function of an image (see tags.Captioner) or
raises ConfigError. Its name is what the option `captioners` calls it. A host may have captioners of its own besides.
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
from ti_trainer.captioning.tags import Captioner, HostCaptioner, Tags, key, written
from ti_trainer.config.preprocessing import PreprocessConfig
from ti_trainer.data.open_image import on_white
from ti_trainer.errors import ConfigError
from ti_trainer.wording import pip_install


def available() -> dict[str, ModuleType]:
    """Our own by name: every file of this folder that has a LABEL. None imports what it computes with before `load`."""
    names = [each.name for each in pkgutil.iter_modules(captioning.__path__)]
    modules = {name: importlib.import_module(f"{captioning.__name__}.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "LABEL")}


def labels(theirs: Mapping[str, HostCaptioner] | None = None) -> dict[str, str]:
    """What people are shown for each captioner that there is, by name: ours, then the host's."""
    ours = {name: module.LABEL for name, module in available().items()}
    return ours | {name: each.label for name, each in (theirs or {}).items()}


def chosen(config: PreprocessConfig, theirs: Mapping[str, HostCaptioner] | None = None) -> list[str]:
    """The names that the option `captioners` holds; ConfigError for one that there is not."""
    names = list(dict.fromkeys(name.strip() for name in config.captioners.split(",") if name.strip()))
    there = labels(theirs)
    unknown = [name for name in names if name not in there]
    if unknown:
        message = f"Captioners: found {', '.join(unknown)}, expected names among {', '.join(there)}."
        raise ConfigError(message, "captioners")
    return names


@contextmanager
def opened(
    config: PreprocessConfig, theirs: Mapping[str, HostCaptioner] | None = None, device: str | torch.device = "auto"
) -> Iterator[Callable[[Image.Image], str]]:
    """Load what the options choose, and yield one function that captions an image of any kind, held upright.

    Afterwards the models are let go of, and the host has its own back. ConfigError if one cannot be loaded. A host's own
    wait for its queue at each image: do not hold its `lock` meanwhile.
    """
    names, place, files = chosen(config, theirs), _device(device), available()
    describing: list[Captioner] = []
    try:
        with ExitStack() as stack:
            for name in names:
                if name in files:
                    describing.append(files[name].load(config, place))
                else:
                    describing.append(stack.enter_context(theirs[name].open(config)))
            yield lambda image: _caption(image, describing, config)
    finally:
        describing.clear()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def missing(package: str, error: ImportError) -> ConfigError:
    """What to raise when a captioner's package is not installed, or does not work."""
    message = f"This captioner needs the package {package} ({error}): {pip_install(package)}"
    return ConfigError(message, "captioners")


def _caption(image: Image.Image, describing: list[Captioner], config: PreprocessConfig) -> str:
    """What each of them says, in their order; a tag that an earlier one has found is not repeated."""
    image, parts, before = on_white(image), [], set()
    for describe in describing:
        said = describe(image)
        if not isinstance(said, str):
            new: Tags = [each for each in said if key(each[0]) not in before]
            before |= {key(tag) for tag, _ in new}
            said = written(new, config)
        parts.append(said.strip())
    return ", ".join(filter(None, parts))


def _device(name: str | torch.device) -> torch.device:
    """A torch device; auto takes CUDA, then Apple's, then the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        message = f"The device {name!r} cannot be used here ({str(error).splitlines()[0]}): try auto or cpu."
        raise ConfigError(message) from error
