"""Which photo has which mask. Reads none of them.

A photo's mask lies beside it, or has its name in a folder of masks, which goes before, as in training.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ti_trainer.data.mask_names import mark_of
from ti_trainer.data.masks import find_masks, masks_beside
from ti_trainer.errors import ConfigError
from ti_trainer.preprocess.manifest import stamp_of

FROM_FOLDER = "-masklabel"  # whose greys mean the same as those of a mask folder


@dataclass(frozen=True)
class Mask:
    """The file, and how the names of masks made of it end, before their ending."""

    path: Path
    mark: str

    def signature(self) -> str:
        """Another one once the mask has changed."""
        try:
            return "-".join((self.mark, *map(str, stamp_of(self.path))))
        except OSError:  # a link to nowhere: whoever reads it says so
            return self.mark


def check_folder(folder: Path, source: Path) -> None:
    """ConfigError unless it can be the folder of masks of the source's photos."""
    if not folder.is_dir():
        message = f"The mask directory {folder} does not exist: name a folder with a grey image for each image."
        raise ConfigError(message, "masks")
    if os.path.realpath(folder) == os.path.realpath(source):
        message = f"The mask directory {folder} is the source: masks that lie beside their images are found without it."
        raise ConfigError(message, "masks")


def masks_of(photos: Iterable[Path], source: Path, folder: Path | None) -> dict[Path, Mask]:
    """The masks of photos of the source and its sub-folders; `folder` has masks by their names, in like sub-folders."""
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in photos:
        by_folder[path.parent].append(path)
    found: dict[Path, Mask] = {}
    for place, here in by_folder.items():
        named = {stem: Mask(path, mark_of(path.stem)) for stem, path in masks_beside(place).items()}
        if folder and (like := folder / place.relative_to(source)).is_dir():
            named |= {stem: Mask(path, FROM_FOLDER) for stem, path in find_masks(like).items()}
        found |= {path: named[path.stem] for path in here if path.stem in named}
    return found
