"""Find the masks of source images, without reading them.

A mask is next to its image, or has its name in a folder of masks, which has priority, as in training.
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
from ti_trainer.preprocess.manifest import signature_of

FROM_FOLDER = "-masklabel"  # the greys of this kind mean the same as in a folder of masks


@dataclass(frozen=True)
class Mask:
    """A mask file, and the suffix of the stems of masks made from it."""

    path: Path
    mark: str

    def signature(self) -> str:
        """A string that changes with the mask."""
        try:
            return "-".join((self.mark, *map(str, signature_of(self.path))))
        except OSError:  # a broken link, which is reported when it is read
            return self.mark


def check_folder(folder: Path, source: Path) -> None:
    """ConfigError if the folder cannot be the folder of masks."""
    if not folder.is_dir():
        message = f"The mask directory {folder} does not exist. Choose a folder with a grey image for each image."
        raise ConfigError(message, "masks")
    if os.path.realpath(folder) == os.path.realpath(source):
        message = f"The mask directory {folder} is the source. Leave it empty: masks next to their images are found."
        raise ConfigError(message, "masks")


def masks_of(images: Iterable[Path], source: Path, folder: Path | None) -> dict[Path, Mask]:
    """The masks of source images; `folder` is a folder of masks with the same subfolders as the source."""
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in images:
        by_folder[path.parent].append(path)
    found: dict[Path, Mask] = {}
    for parent, here in by_folder.items():
        named = {stem: Mask(path, mark_of(path.stem)) for stem, path in masks_beside(parent).items()}
        if folder and (like := folder / parent.relative_to(source)).is_dir():
            named |= {stem: Mask(path, FROM_FOLDER) for stem, path in find_masks(like).items()}
        found |= {path: named[path.stem] for path in here if path.stem in named}
    return found
