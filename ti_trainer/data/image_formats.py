"""The image formats that can be opened: those of Pillow and of its optional plug-ins.

Plug-ins are registered only here, once, at first use.
"""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from functools import lru_cache

import PIL
from PIL import Image, ImageFile

from ti_trainer.wording import pip_install

NO_IMAGES = {".pdf", ".eps", ".ps", ".mpg", ".mpeg"}  # Pillow knows them; PostScript would run another program


@dataclass(frozen=True)
class _Plugin:
    """A package that adds a format to Pillow: its names for pip and `import`, Pillow's name for the format, and endings."""

    package: str
    module: str
    format: str
    endings: tuple[str, ...]


_PLUGINS = (
    _Plugin("pillow-heif", "pillow_heif", "HEIF", (".heic", ".heics", ".heif", ".heifs", ".hif")),
    _Plugin("pillow-jxl-plugin", "pillow_jxl", "JXL", (".jxl",)),
)
OWN_AVIF = (11, 3)  # the first Pillow that reads AVIF itself
AVIF_BEFORE = "pillow-heif~=0.16"  # 0.16 to 0.22 read it, later ones do not


@lru_cache
def image_endings() -> frozenset[str]:
    """The endings of image files that can be opened here, in lower case and with their dots."""
    kinds = set(readable_formats())
    found = {ending for ending, kind in Image.registered_extensions().items() if kind in kinds}
    return frozenset(found - NO_IMAGES)


@lru_cache
def readable_formats() -> tuple[str, ...]:
    """What Pillow calls these formats, for its `open`."""
    missing = {each.format for each in _PLUGINS if not _registered(each)}
    # opened_image refuses images that are too large; a warning on the console is not needed.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    Image.init()
    unwanted = missing | {Image.EXTENSION.get(ending) for ending in NO_IMAGES}
    return tuple(kind for kind, (factory, _) in Image.OPEN.items() if kind not in unwanted and not _is_stub(factory))


def packages() -> dict[str, str]:
    """The endings of images that a package reads which may be missing, and the package."""
    found = {ending: each.package for each in _PLUGINS for ending in each.endings}
    own = tuple(map(int, PIL.__version__.split(".")[:2])) >= OWN_AVIF
    return found if own else found | {".avif": AVIF_BEFORE}


def how_to_read(ending: str) -> str:
    """What to install to read files of this ending, in words; "" if they can be read, or never are."""
    ending = ending.lower()
    if ending in image_endings():
        return ""
    package = packages().get(ending)
    if not package:
        return ""
    return f"{ending[1:].upper()} needs the package {package}, which is not installed: {install_command(package)}"


def install_command(package: str) -> str:
    """For a shell. Pillow stays as it is, so that pip takes what suits it: a newer one would break an older WebUI."""
    return pip_install(package, f"pillow=={PIL.__version__}")


@lru_cache
def _registered(plugin: _Plugin) -> bool:
    """Add a plug-in's formats to Pillow; False if it is not installed, or does not suit this Pillow."""
    try:
        module = importlib.import_module(plugin.module)  # pillow_jxl registers itself
        if plugin.module == "pillow_heif":
            module.register_heif_opener()
            if hasattr(module, "register_avif_opener") and ".avif" not in Image.registered_extensions():
                module.register_avif_opener()
    except Exception:  # also one that is broken: what it cannot read is named with the package
        return False
    return True


def _is_stub(factory: object) -> bool:
    """Whether a format is only recognised, and never read."""
    return isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
