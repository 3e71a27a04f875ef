"""A look at a data set before a run: what is there, how it will be fed, and what is likely to go wrong.

Reads headers of all pictures and pixels of a few; encodes nothing, writes nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from ti_trainer.config import TrainConfig
from ti_trainer.data.dataset import sample_rng
from ti_trainer.data.images import eight_bit, find_images
from ti_trainer.data.prompts import FILEWORDS, Prompter, caption_of
from ti_trainer.model import DiffusionModel, Vectors
from ti_trainer.prompts import CHUNK, TokenizedPrompt

THUMBNAILS, THUMBNAIL_PX, PROMPTS = 24, 192, 10
FEW, MANY = 3, 200  # pictures: fewer teach little, more take long


@dataclass(frozen=True)
class Look:
    """What was found. `thumbnails` are of the first pictures, with their captions; `prompts` as they will be fed."""

    count: int
    sizes: tuple[tuple[tuple[int, int], int], ...]
    captioned: int
    unreadable: tuple[tuple[str, str], ...]
    thumbnails: tuple[tuple[Image.Image, str], ...]
    prompts: tuple[tuple[str, TokenizedPrompt], ...]
    warnings: tuple[str, ...]


def look(
    folder: Path,
    template: Sequence[str],
    config: TrainConfig,
    model: DiffusionModel,
    name: str,
    vectors: Vectors,
) -> Look:
    """Look at the folder as a run with these options would; DatasetError if there is nothing to look at."""
    paths = find_images(folder)
    sizes: Counter[tuple[int, int]] = Counter()
    unreadable: list[tuple[str, str]] = []
    thumbnails: list[tuple[Image.Image, str]] = []
    captions: dict[Path, str] = {}
    for path in paths:
        try:
            size, thumbnail = _opened(path, wanted=len(thumbnails) < THUMBNAILS)
        except Exception as error:  # a damaged file provokes anything
            unreadable.append((path.name, str(error) or type(error).__name__))
            continue
        sizes[size] += 1
        captions[path] = caption_of(path, config.filename_word_regex, config.filename_join_string)
        if thumbnail is not None:
            thumbnails.append((thumbnail, captions[path]))
    captioned = sum(path.with_suffix(".txt").is_file() for path in captions)
    prompter = Prompter(name, template, config.shuffle_tags, config.tag_dropout)
    prompts = [
        prompter(caption, sample_rng(config.seed, number)) for number, caption in enumerate(_around(list(captions.values())))
    ]
    tokenized = tuple((prompt, model.tokenize(prompt, {name: vectors})) for prompt in prompts)
    warnings = [
        *_about_pictures(sizes, unreadable, duplicates(list(captions)), config, model),
        *_about_prompts(captions, captioned, template, tokenized),
    ]
    return Look(
        len(paths), tuple(sizes.most_common()), captioned, tuple(unreadable), tuple(thumbnails), tokenized, tuple(warnings)
    )


def duplicates(paths: Sequence[Path]) -> list[list[str]]:
    """Names of files with the same content, together; only files of the same length are read."""
    by_length: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        by_length[path.stat().st_size].append(path)
    by_content: dict[bytes, list[str]] = defaultdict(list)
    for same_length in by_length.values():
        if len(same_length) > 1:
            for path in same_length:
                by_content[hashlib.sha256(path.read_bytes()).digest()].append(path.name)
    return [names for names in by_content.values() if len(names) > 1]


def _opened(path: Path, *, wanted: bool) -> tuple[tuple[int, int], Image.Image | None]:
    """The size of a picture held upright, and a small version of it if one is wanted."""
    with Image.open(path) as opened:
        width, height = opened.size
        # Pillow's own for PNG would decode the whole picture for it.
        if Image.Image.getexif(opened).get(0x0112, 1) >= 5:  # lies on its side
            width, height = height, width
        if not wanted:
            return (width, height), None
        opened.draft("RGB", (2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX))
        small = eight_bit(ImageOps.exif_transpose(opened))
        small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        return (width, height), small.convert("RGB")


def _around(captions: list[str]) -> list[str]:
    """As many as prompts are shown, from the beginning again where there are fewer."""
    return [captions[number % len(captions)] for number in range(PROMPTS)] if captions else []


def _about_pictures(
    sizes: Counter[tuple[int, int]],
    unreadable: Sequence[tuple[str, str]],
    same: Sequence[Sequence[str]],
    config: TrainConfig,
    model: DiffusionModel,
) -> list[str]:
    count = sum(sizes.values())
    width, height = config.width or model.default_size_px, config.height or model.default_size_px
    small = sum(number for (w, h), number in sizes.items() if w < width or h < height)
    cropped = sum(number for (w, h), number in sizes.items() if abs(w / h / (width / height) - 1) > 0.02)
    warnings = [f"{name} cannot be read and will be left out ({reason})." for name, reason in unreadable[:5]]
    if len(unreadable) > 5:
        warnings.append(f"{len(unreadable) - 5} more pictures cannot be read.")
    if small and not config.do_not_resize:
        warnings.append(
            f"{_pictures(small)} smaller than {width} x {height} px and will be enlarged: the word learns their blur. "
            "Use larger ones, or a smaller width and height."
        )
    if cropped and not config.do_not_resize:
        warnings.append(f"{_pictures(cropped)} of another shape than {width} x {height} px: the middle is trained on.")
    warnings += [f"The same picture, several times: {', '.join(names)}." for names in same[:5]]
    if 0 < count < FEW:
        warnings.append(
            f"Only {_pictures(count, verb=False)}: with fewer than {FEW} the word learns the background as well."
        )
    if count > MANY:
        warnings.append(f"{count} pictures: 5 to 30 good ones usually teach a word better than very many.")
    if config.batch_size > count * config.repeats > 0:
        warnings.append(
            f"The batch size {config.batch_size} is more than there are pictures: some come up twice in a batch."
        )
    return warnings


def _about_prompts(
    captions: dict[Path, str], captioned: int, template: Sequence[str], tokenized: Sequence[tuple[str, TokenizedPrompt]]
) -> list[str]:
    warnings = []
    uses_captions = any(FILEWORDS in line for line in template)
    if uses_captions and captioned < len(captions):
        warnings.append(
            f"{_pictures(len(captions) - captioned)} without a .txt file: the file's name is the caption. If names say "
            "nothing, take a template without [filewords]."
        )
    if not uses_captions and captioned:
        warnings.append(
            f"{_pictures(captioned)} with a caption, but the template has no [filewords]: captions are not used."
        )
    long = [prompt for prompt, each in tokenized if len(each.chunks) > 1]
    if long:
        warnings.append(f"Longer than {CHUNK} tokens, so that it is fed in parts: {long[0]!r}.")
    if any(not each.splices for _, each in tokenized):
        warnings.append("The word is not found in a prompt: its name may be a part of another embedding's.")
    return warnings


def _pictures(count: int, *, verb: bool = True) -> str:
    return (
        (f"{count} picture is" if count == 1 else f"{count} pictures are") if verb else f"{count} picture{'s' * (count > 1)}"
    )
