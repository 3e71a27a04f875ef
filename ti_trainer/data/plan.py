"""Which pictures of a data set are trained on, and how often each comes up. Reads no picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ti_trainer.data.masks import find_masks, masks_beside
from ti_trainer.data.pictures import find_images
from ti_trainer.data.subsets import Subset
from ti_trainer.errors import ConfigError, DatasetError
from ti_trainer.model import DiffusionModel
from ti_trainer.naming import has_word
from ti_trainer.prompts import weighted_parts

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Planned:
    """A picture to be read: with its mask, if it has one, and how often it will come up in an epoch."""

    path: Path
    subset: Subset
    mask: Path | None
    repeats: int


def plan(
    subsets: Sequence[Subset], model: DiffusionModel, prompt_of: Callable[[Path, Subset], str], name: str, warn: Warn
) -> list[Planned]:
    """Which pictures of the subsets are trained on.

    DatasetError if a folder is not there or empty, none is left, or a prompt cannot be read.

    The network is frozen, so that a regularisation picture teaches something only if its prompt, `prompt_of`, has the word
    `name` in it: others are left out. Together they come up as often as all other pictures, as in kohya's trainers.
    """
    planned: list[Planned] = []
    without_word = 0
    for subset in subsets:
        paths = find_images(subset.folder)
        for path in paths:
            _check_prompt(path, prompt_of(path, subset))
        if subset.is_reg:
            having = [path for path in paths if has_word(model, prompt_of(path, subset), name)]
            without_word += len(paths) - len(having)
            paths = having
        masks = masks_beside(subset.folder) | ({} if subset.masks is None else find_masks(subset.masks))
        planned += [Planned(path, subset, masks.get(path.stem), subset.repeats) for path in paths]
        missing = sum(path.stem not in masks for path in paths) if subset.masks is not None else 0
        if missing:
            warn(
                f"{missing} of {len(paths)} pictures in {subset.folder} have no mask in {subset.masks}: they count all over."
            )
    if without_word:
        warn(
            f"Left out, regularisation pictures: {without_word}. Nothing but the word is trained, and their prompts do not "
            f"contain {name}, so they could teach nothing. Put [name] into their class_tokens or captions: then they are "
            "trained on with the prior loss weight, and keep the word near its class."
        )
    return _balanced(planned, warn)


def _balanced(planned: Sequence[Planned], warn: Warn) -> list[Planned]:
    """Regularisation pictures each with its repeats until they are as many samples as the others, or else with more."""
    counts = [each.repeats for each in planned if each.subset.is_reg]
    left = sum(each.repeats for each in planned if not each.subset.is_reg)
    if not left:
        message = "There are only regularisation pictures in this data set: name a folder with pictures of the thing, too."
        raise DatasetError(message)
    for number, count in enumerate(counts):
        counts[number] = count if left > 0 else 0
        left -= counts[number]
    more, rest = divmod(max(left, 0), max(len(counts), 1))
    turns = iter([count + more + (number < rest) for number, count in enumerate(counts)])
    if unused := counts.count(0):
        warn(f"{unused} regularisation pictures are not used: they are more than there are pictures of the thing.")
    found = [replace(each, repeats=next(turns)) if each.subset.is_reg else each for each in planned]
    return [each for each in found if each.repeats]


def _check_prompt(path: Path, prompt: str) -> None:
    """Before the first step, and not in the middle of a run."""
    try:
        weighted_parts(prompt)
    except ConfigError as error:
        message = f"The caption of {path.name} cannot be used. {error}"
        raise DatasetError(message) from error
