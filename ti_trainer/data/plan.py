"""Plan a dataset: which images are trained on, with which captions, masks and repeats. Reads captions, but no image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ti_trainer.data.caption_files import captions_among
from ti_trainer.data.caption_text import read_caption
from ti_trainer.data.image_files import list_images
from ti_trainer.data.listing import Listing
from ti_trainer.data.masks import find_masks, masks_among
from ti_trainer.data.prompts import NAME, Prompter, has_filewords, name_caption
from ti_trainer.data.subsets import Subset
from ti_trainer.errors import ConfigError, DatasetError
from ti_trainer.formats.naming import has_word
from ti_trainer.model import DiffusionModel
from ti_trainer.prompts import weighted_parts
from ti_trainer.wording import counted, encodable

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Planned:
    """An image to train on, with its caption and mask, if any, and the number of repeats in an epoch.

    `caption_file` is the file that the caption was read from. Without one the caption is the subset's, or the file name.
    """

    path: Path
    subset: Subset
    mask: Path | None
    repeats: int
    caption: str | None
    caption_file: Path | None


@dataclass(frozen=True)
class Captions:
    """Where captions come from: the caption file, else the subset's class tokens, else the file name where that is used.

    File names are used with a `word_regex`, and with a [filewords] template that has no lines for images without a caption.
    In the second case names without meaning, such as IMG_2031, are no captions.
    """

    prompter: Prompter
    word_regex: str = ""
    join_string: str = " "

    def of(self, image: Path, subset: Subset, file: Path | None) -> str | None:
        """The caption of an image, or None; DatasetError if its file is not a text file, or its name not UTF-8."""
        if file is not None:
            return subset.captioned(read_caption(file))
        named = subset.class_tokens or self._name(image)
        if named and (shown := encodable(named)) != named:
            message = f"{shown} cannot be the caption of an image in {image.parent}: the name is not UTF-8. Rename it."
            raise DatasetError(message)
        return subset.captioned(named)

    def _name(self, image: Path) -> str | None:
        is_used = self.word_regex or (has_filewords(self.prompter.template) and not self.prompter.plain)
        return name_caption(image, self.word_regex, self.join_string) if is_used else None


def list_subsets(subsets: Sequence[Subset]) -> dict[Path, Listing]:
    """List the folder of each subset, each folder once; DatasetError if one does not exist or has no images."""
    return {folder: list_images(folder) for folder in dict.fromkeys(subset.folder for subset in subsets)}


def plan(
    subsets: Sequence[Subset],
    model: DiffusionModel,
    captions: Captions,
    warn: Warn,
    listings: Mapping[Path, Listing] | None = None,
) -> list[Planned]:
    """Choose the images to train on. `listings` are those of the subsets' folders, if there are some already.

    The network is frozen, so a regularisation image can only teach something if its prompt contains the embedding's name;
    others are left out. All together they are repeated as often as the other images, as in kohya's trainers. DatasetError if
    a folder is missing or empty, or no image is left. ConfigError if a prompt would not contain the name: neither the
    template's line nor the caption in it does.
    """
    listings = list_subsets(subsets) if listings is None else listings
    planned: list[Planned] = []
    without_word = 0
    name = captions.prompter.name
    for subset in subsets:
        found = _planned(subset, captions, listings[subset.folder])
        for each in found:
            _check_prompt(each.path, captions.prompter.alone(each.caption))
        if subset.is_reg:
            having = [each for each in found if has_word(model, captions.prompter.alone(each.caption), name)]
            without_word += len(found) - len(having)
            found = having
        planned += found
        missing = sum(each.mask is None for each in found) if subset.masks is not None else 0
        if missing:
            where = f"{missing} of {len(found)} images in {subset.folder} have no mask in {subset.masks}"
            warn(f"{where}. All their pixels are trained on.")
    if without_word:
        warn(
            f"Not used: {counted(without_word, 'regularisation image')}. Only the embedding is trained, so an image has no "
            f"effect if its prompt does not contain {name}. Put [name] into their class_tokens or captions: then they "
            "are trained on with the prior loss weight, and keep the embedding close to its class."
        )
    _check_word(planned, model, captions.prompter)
    return _balanced(planned, warn)


def _planned(subset: Subset, captions: Captions, listing: Listing) -> list[Planned]:
    """The images of a subset."""
    masks = masks_among(listing.files) | ({} if subset.masks is None else find_masks(subset.masks))
    texts = captions_among(listing.files, listing.images, subset.caption_extension)
    return [
        Planned(image, subset, masks.get(image.stem), subset.repeats, captions.of(image, subset, file), file)
        for image in listing.images
        for file in [texts.get(image)]
    ]


def _check_word(planned: Sequence[Planned], model: DiffusionModel, prompter: Prompter) -> None:
    """ConfigError if a prompt does not contain the embedding's name: it would train nothing."""
    line = next((line for line in prompter.template if NAME not in line), None)
    if line is None:
        return
    for each in planned:
        caption = None if each.subset.is_reg or each.caption is None else prompter.alone(each.caption)
        if caption is not None and not has_word(model, caption, prompter.name):
            message = (
                f"The template has a line without {NAME}, {line!r}, and the caption of {each.path.name} does not contain "
                f"{prompter.name}: {caption!r}. This prompt would train nothing. Put {NAME} into the line, or "
                f"{prompter.name} into every caption."
            )
            raise ConfigError(message, "template")


def _balanced(planned: Sequence[Planned], warn: Warn) -> list[Planned]:
    """Change the repeats of regularisation images so that they give as many samples as the other images."""
    counts = [each.repeats for each in planned if each.subset.is_reg]
    left = sum(each.repeats for each in planned if not each.subset.is_reg)
    if not left:
        message = "This dataset has only regularisation images. Add a folder with images of the concept."
        raise DatasetError(message)
    for number, count in enumerate(counts):
        counts[number] = count if left > 0 else 0
        left -= counts[number]
    more, rest = divmod(max(left, 0), max(len(counts), 1))
    repeats = iter([count + more + (number < rest) for number, count in enumerate(counts)])
    if unused := counts.count(0):
        warn(f"{unused} regularisation images are not used: there are more of them than images of the concept.")
    found = [replace(each, repeats=next(repeats)) if each.subset.is_reg else each for each in planned]
    return [each for each in found if each.repeats]


def _check_prompt(path: Path, prompt: str) -> None:
    """DatasetError, before the first step, for a caption that cannot be parsed."""
    try:
        weighted_parts(prompt)
    except ConfigError as error:
        message = f"The caption of {path.name} cannot be used. {error}"
        raise DatasetError(message) from error
