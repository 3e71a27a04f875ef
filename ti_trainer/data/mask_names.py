"""Decide by name which files are masks, without reading them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from ti_trainer.data.caption_files import composed

ATTENTION = "_att"  # how DreamArtist's masks are named, which lie beside their images
MASKS = (ATTENTION, "-masklabel")  # all that lie there: OneTrainer's, too
_OF_OTHERS = re.compile(r"(?i)(.+?)[-_. ](?:mask|masklabel|att)")


def without_masks(images: Iterable[Path]) -> list[Path]:
    """Those that are no masks: not a_att.png and a-masklabel.png, whatever lies beside them, nor a_mask.png beside a.png."""
    images = list(images)
    others = set(masks_of_others(images))
    return [path for path in images if not mark_of(path.stem) and path not in others]


def mark_of(stem: str) -> str:
    """How the stem of a mask's name ends, "_att" or "-masklabel"; "" for what is no mask by its name."""
    return next((mark for mark in MASKS if stem.endswith(mark)), "")


def like_mask(stem: str) -> bool:
    """Whether an image of this name may be taken for the mask of another one."""
    return bool(mark_of(stem) or _OF_OTHERS.fullmatch(stem))


def masks_alone(images: Collection[Path]) -> list[Path]:
    """Masks without an image of their name."""
    stems = {(path.parent, composed(path.stem)) for path in images}
    masks = [path for path in images if mark_of(path.stem)]
    return [path for path in masks if (path.parent, composed(path.stem.removesuffix(mark_of(path.stem)))) not in stems]


def masks_of_others(images: Collection[Path]) -> list[Path]:
    """What other programs would take for the mask of an image beside it, such as a_mask.png and A-MASK.png beside a.png."""
    stems = {(path.parent, composed(path.stem).casefold()) for path in images}
    named = [(path, _OF_OTHERS.fullmatch(composed(path.stem))) for path in images if not mark_of(path.stem)]
    return [path for path, found in named if found and (path.parent, found[1].casefold()) in stems]
