"""Which images of a dataset are trained on, with which captions, and how often each comes up. Reads no image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ti_trainer.data.caption_files import captions_among
from ti_trainer.data.caption_text import read_caption
from ti_trainer.data.image_files import files_in, find_images
from ti_trainer.data.masks import find_masks, masks_beside
from ti_trainer.data.prompts import NAME, Prompter, has_filewords, name_caption
from ti_trainer.data.subsets import Subset
from ti_trainer.errors import ConfigError, DatasetError
from ti_trainer.formats.naming import has_word
from ti_trainer.model import DiffusionModel
from ti_trainer.prompts import weighted_parts

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Planned:
    """An image to be read: with its caption and its mask, if it has them, and how often it will come up in an epoch.

    `caption_file` is what the caption was read from; without, it is what its subset says, or its own name.
    """

    path: Path
    subset: Subset
    mask: Path | None
    repeats: int
    caption: str | None
    caption_file: Path | None


@dataclass(frozen=True)
class Captions:
    """How images are captioned: from their file, else their subset's class tokens, else their names, if those are asked for.

    They are by a regular expression for them, or by a template with [filewords] that has no other one beside it for images
    without a caption; then only those names count that say something.
    """

    prompter: Prompter
    word_regex: str = ""
    join_string: str = " "

    def of(self, image: Path, subset: Subset, file: Path | None) -> str | None:
        """The caption of an image, None if it has none; DatasetError for a file that is no text."""
        if file is not None:
            return subset.captioned(read_caption(file))
        return subset.captioned(subset.class_tokens or self._name(image))

    def _name(self, image: Path) -> str | None:
        asked = self.word_regex or (has_filewords(self.prompter.template) and not self.prompter.plain)
        return name_caption(image, self.word_regex, self.join_string) if asked else None


def plan(subsets: Sequence[Subset], model: DiffusionModel, captions: Captions, warn: Warn) -> list[Planned]:
    """Which images of the subsets are trained on. DatasetError if a folder is not there or empty, or none is left.

    The network is frozen, so that a regularisation image teaches something only if its prompt has the word in it: others are
    left out. Together they come up as often as all other images, as in kohya's trainers. ConfigError if a template's line
    has no [name], and a caption that is put into it has not the word either.
    """
    planned: list[Planned] = []
    without_word = 0
    name = captions.prompter.name
    for subset in subsets:
        found = _listed(subset, captions)
        for each in found:
            _check_prompt(each.path, captions.prompter.alone(each.caption))
        if subset.is_reg:
            having = [each for each in found if has_word(model, captions.prompter.alone(each.caption), name)]
            without_word += len(found) - len(having)
            found = having
        planned += found
        missing = sum(each.mask is None for each in found) if subset.masks is not None else 0
        if missing:
            warn(f"{missing} of {len(found)} images in {subset.folder} have no mask in {subset.masks}: they count all over.")
    if without_word:
        warn(
            f"Left out, regularisation images: {without_word}. Nothing but the word is trained, and their prompts do not "
            f"contain {name}, so they could teach nothing. Put [name] into their class_tokens or captions: then they are "
            "trained on with the prior loss weight, and keep the word near its class."
        )
    _check_word(planned, model, captions.prompter)
    return _balanced(planned, warn)


def _listed(subset: Subset, captions: Captions) -> list[Planned]:
    """The images of a subset."""
    images, files = find_images(subset.folder), files_in(subset.folder)
    masks = masks_beside(subset.folder) | ({} if subset.masks is None else find_masks(subset.masks))
    texts = captions_among(files, images, subset.caption_extension)
    return [
        Planned(image, subset, masks.get(image.stem), subset.repeats, captions.of(image, subset, file), file)
        for image in images
        for file in [texts.get(image)]
    ]


def _check_word(planned: Sequence[Planned], model: DiffusionModel, prompter: Prompter) -> None:
    """A prompt without the word would train nothing."""
    line = next((line for line in prompter.template if NAME not in line), None)
    if line is None:
        return
    for each in planned:
        said = None if each.subset.is_reg or each.caption is None else prompter.alone(each.caption)
        if said is not None and not has_word(model, said, prompter.name):
            message = (
                f"The template has a line without {NAME}, {line!r}, and the caption of {each.path.name} does not contain "
                f"{prompter.name}: {said!r}. Such a prompt would train nothing: put {NAME} into the line, or the word into "
                "every caption."
            )
            raise ConfigError(message, "template")


def _balanced(planned: Sequence[Planned], warn: Warn) -> list[Planned]:
    """Regularisation images each with its repeats until they are as many samples as the others, or else with more."""
    counts = [each.repeats for each in planned if each.subset.is_reg]
    left = sum(each.repeats for each in planned if not each.subset.is_reg)
    if not left:
        message = "There are only regularisation images in this dataset: name a folder with images of the thing, too."
        raise DatasetError(message)
    for number, count in enumerate(counts):
        counts[number] = count if left > 0 else 0
        left -= counts[number]
    more, rest = divmod(max(left, 0), max(len(counts), 1))
    turns = iter([count + more + (number < rest) for number, count in enumerate(counts)])
    if unused := counts.count(0):
        warn(f"{unused} regularisation images are not used: they are more than there are images of the thing.")
    found = [replace(each, repeats=next(turns)) if each.subset.is_reg else each for each in planned]
    return [each for each in found if each.repeats]


def _check_prompt(path: Path, prompt: str) -> None:
    """Before the first step, and not in the middle of a run."""
    try:
        weighted_parts(prompt)
    except ConfigError as error:
        message = f"The caption of {path.name} cannot be used. {error}"
        raise DatasetError(message) from error
