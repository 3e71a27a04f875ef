"""The classes of diffusers and transformers that this host uses, imported without most of what these libraries import.

Importing one U-Net runs the __init__ of its package, which imports all U-Nets. Decorators and type checks import torch's
compiler and its distributed tensors, and optional packages are imported where they are installed. With all that, opening a
small model takes twice the CPU time.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

# Before the libraries are imported: a path that does not exist must not become a download.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

PACKAGES = (  # whose __init__ imports all their modules
    "diffusers.hooks",
    "diffusers.models.autoencoders",
    "diffusers.models.transformers",
    "diffusers.models.unets",
)
REPLACED = (  # by stand-ins. All that the libraries import of torch: no module of torch itself may see a stand-in
    "torch._dynamo",
    "torch.distributed._composable",
    "torch.distributed._functional_collectives",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.nn.attention.flex_attention",
)
OPTIONAL = ("bitsandbytes", "scipy")  # treated as not installed: nothing that is used here needs them
_decorated: list[tuple[str, Any]] = []  # the compiler's decorator, and the function or class that it decorates


class _DeferredPackage(ModuleType):
    """A package whose __init__ runs when an attribute is missing; until then its modules are imported without it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self.__spec__ is None or self.__spec__.loader is None:
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]  # so that this happens once
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


class _StandIn(ModuleType):
    """Has every name: decorators that do nothing but are noted, and classes without instances."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ("allow_in_graph", "assume_constant_result"):
            return partial(_note, name)
        return _disable if name == "disable" else type(name, (), {"__init__": _accept})


def _note(decorator: str, decorated: Any) -> Any:
    _decorated.append((decorator, decorated))
    return decorated


def _accept(self: object, *_: Any, **__: Any) -> None:
    """Take any arguments: some are created at import."""


def _disable(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    return function or _disable


class _StandInFinder(MetaPathFinder, Loader):
    """Finds stand-ins for modules and all of their submodules."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.created = names, list[str]()

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        is_replaced = any(name == each or name.startswith(f"{each}.") for each in self.names)
        return ModuleSpec(name, self, is_package=True) if is_replaced else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self.created.append(spec.name)
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to execute."""

    def remove(self) -> None:
        sys.meta_path.remove(self)
        for name in self.created:
            stand_in = sys.modules.pop(name, None)
            parent, _, child = name.rpartition(".")
            if stand_in is not None and vars(sys.modules.get(parent, self)).get(child) is stand_in:
                delattr(sys.modules[parent], child)


@contextmanager
def _light_imports() -> Iterator[None]:
    """Within it, PACKAGES are deferred, REPLACED are stand-ins and OPTIONAL are missing; afterwards all import as usual.

    If other code has imported the libraries already, they know which packages are installed: then nothing is changed.
    """
    if "diffusers" in sys.modules or "transformers" in sys.modules:
        yield
        return
    finder = _StandInFinder([name for name in REPLACED if name not in sys.modules])
    missing = [name for name in OPTIONAL if name not in sys.modules]
    sys.meta_path.insert(0, finder)
    sys.modules.update(dict.fromkeys(missing))  # type: ignore[arg-type]  # None: an import says that there is no such module
    try:
        for name in PACKAGES:
            _defer(name)
        yield
    finally:
        finder.remove()
        for name in missing:
            del sys.modules[name]


def _defer(name: str) -> None:
    """Leave the package's __init__ for later, if there is such a package and it has not been imported."""
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is not None:
        package = sys.modules[name] = _DeferredPackage(name)
        package.__spec__, package.__loader__, package.__file__ = spec, spec.loader, spec.origin
        package.__path__, package.__package__ = spec.submodule_search_locations or [], name
        parent, _, child = name.rpartition(".")
        setattr(sys.modules[parent], child, package)


def prepare_compiling() -> None:
    """Apply the decorators for torch.compile that the light imports left out."""
    while _decorated:
        decorator, decorated = _decorated.pop()
        getattr(torch._dynamo, decorator)(decorated)


with _light_imports():
    import diffusers
    import transformers
    from diffusers.models.attention_processor import AttnProcessor
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

__all__ = [
    "AttnProcessor",
    "AutoencoderKL",
    "CLIPTextConfig",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPTokenizer",
    "DDPMScheduler",
    "UNet2DConditionModel",
    "diffusers",
    "prepare_compiling",
    "transformers",
]
