"""A look at a data set before a run: what is there, how it will be fed, and what is likely to go wrong.

Reads headers of all pictures and pixels of a few; encodes nothing, writes nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ti_trainer.config import TrainConfig
from ti_trainer.data.dataset import sample_rng
from ti_trainer.data.images import Frame, frame_of
from ti_trainer.data.pictures import upright, upright_size
from ti_trainer.data.plan import Planned, plan
from ti_trainer.data.prompts import FILEWORDS, Prompter
from ti_trainer.data.subsets import Subset, read_subsets
from ti_trainer.model import DiffusionModel, Vectors
from ti_trainer.naming import STRANDED, syntax_warnings
from ti_trainer.prompts import CHUNK, TokenizedPrompt

THUMBNAILS, THUMBNAIL_PX, PROMPTS = 24, 192, 10
FEW, MANY = 3, 200  # pictures: fewer teach little, more take long
NOTICED = 0.02  # of a picture cut off, as a fraction
MUCH = 0.25  # the same with buckets, which always cut a little


@dataclass(frozen=True)
class Look:
    """What was found. `thumbnails` are of the first pictures, with their captions; `prompts` as they will be fed.

    `sizes` and, where there are some, `buckets` are (width, height) with their numbers of pictures; `folders` of how many.
    """

    count: int
    folders: int
    sizes: tuple[tuple[tuple[int, int], int], ...]
    buckets: tuple[tuple[tuple[int, int], int], ...]
    captioned: int
    masked: int
    unreadable: tuple[tuple[str, str], ...]
    thumbnails: tuple[tuple[Image.Image, str], ...]
    prompts: tuple[tuple[str, TokenizedPrompt], ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Seen:
    """One readable picture."""

    planned: Planned
    size: tuple[int, int]
    caption: str


def look(
    images: Path | Sequence[Subset],
    template: Sequence[str],
    config: TrainConfig,
    model: DiffusionModel,
    name: str,
    vectors: Vectors,
) -> Look:
    """Look at a folder, or a data set file, as such a run would; DatasetError if there is nothing to look at."""
    warnings: list[str] = []
    subsets = read_subsets(images, warnings.append) if isinstance(images, Path) else images
    prompter = Prompter(name, template, config.shuffle_tags, config.tag_dropout)

    def caption_of(path: Path, subset: Subset) -> str:
        return subset.caption_of(path, config.filename_word_regex, config.filename_join_string)

    def name_of(path: Path) -> str:
        return path.name if len(subsets) == 1 else f"{path.parent.name}/{path.name}"

    planned = plan(subsets, model, lambda *which: prompter.alone(caption_of(*which)), name, warnings.append)
    seen, broken, thumbnails = _read(planned, caption_of)
    unreadable = [(name_of(path), reason) for path, reason in broken]
    tokenized = tuple((prompt, model.tokenize(prompt, {name: vectors})) for prompt in _prompts(seen, prompter, config.seed))
    frame = frame_of(config, model.default_size_px)
    same = [[name_of(path) for path in paths] for paths in same_files([each.planned.path for each in seen])]
    sizes = Counter(each.size for each in seen)
    buckets = Counter(frame.size_for(each.size) for each in seen) if frame.buckets else Counter()
    warnings += [
        *_about_files(unreadable, same),
        *_about_sizes(sizes, frame),
        *_about_numbers(seen, frame, config),
        *_about_prompts(seen, template, tokenized),
    ]
    captioned = sum(each.planned.subset.has_caption(each.planned.path) for each in seen)
    return Look(
        len(planned),
        len(subsets),
        tuple(sizes.most_common()),
        tuple(buckets.most_common()),
        captioned,
        sum(each.planned.mask is not None for each in seen),
        tuple(unreadable),
        tuple(thumbnails),
        tokenized,
        tuple(warnings),
    )


def _read(
    planned: Sequence[Planned], caption_of: Callable[[Path, Subset], str]
) -> tuple[list[_Seen], list[tuple[Path, str]], list[tuple[Image.Image, str]]]:
    """The readable pictures, the others with the reasons, and small versions of the first."""
    seen: list[_Seen] = []
    broken: list[tuple[Path, str]] = []
    thumbnails: list[tuple[Image.Image, str]] = []
    for each in planned:
        try:
            size, thumbnail = _opened(each.path, wanted=len(thumbnails) < THUMBNAILS)
        except Exception as error:  # a damaged file provokes anything
            broken.append((each.path, str(error) or type(error).__name__))
            continue
        seen.append(_Seen(each, size, caption_of(each.path, each.subset)))
        if thumbnail is not None:
            thumbnails.append((thumbnail, seen[-1].caption))
    return seen, broken, thumbnails


def same_files(paths: Sequence[Path]) -> list[list[Path]]:
    """Files with the same content, together; only files of the same length are read."""
    by_length: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        by_length[path.stat().st_size].append(path)
    by_content: dict[bytes, list[Path]] = defaultdict(list)
    for same_length in by_length.values():
        if len(same_length) > 1:
            for path in same_length:
                by_content[hashlib.sha256(path.read_bytes()).digest()].append(path)
    return [same for same in by_content.values() if len(same) > 1]


def _opened(path: Path, *, wanted: bool) -> tuple[tuple[int, int], Image.Image | None]:
    """The size of a picture held upright, and a small version of it if one is wanted."""
    with Image.open(path) as opened:
        size = upright_size(opened)
        if not wanted:
            return size, None
        small = upright(opened, (2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX))
        small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        return size, small.convert("RGB")


def _prompts(seen: Sequence[_Seen], prompter: Prompter, seed: int) -> list[str]:
    """As many as are shown, from the first picture again where there are fewer."""
    chosen = [seen[number % len(seen)] for number in range(PROMPTS)] if seen else []
    return [
        prompter.alone(each.caption) if each.planned.subset.is_reg else prompter(each.caption, sample_rng(seed, number))
        for number, each in enumerate(chosen)
    ]


def _about_files(unreadable: Sequence[tuple[str, str]], same: Sequence[Sequence[str]]) -> list[str]:
    warnings = [f"{name} cannot be read and will be left out ({reason})." for name, reason in unreadable[:5]]
    if len(unreadable) > 5:
        warnings.append(f"{len(unreadable) - 5} more pictures cannot be read.")
    return warnings + [f"The same picture, several times: {', '.join(names)}." for names in same[:5]]


def _about_sizes(sizes: Counter[tuple[int, int]], frame: Frame) -> list[str]:
    """What is enlarged, and what is cut off."""
    if frame.size is None:
        return []
    small = cropped = 0
    for size, number in sizes.items():
        width, height = frame.size_for(size) or size
        small += number * (size[0] < width or size[1] < height)
        cut = size[0] / size[1] / (width / height)
        cropped += number * (max(cut, 1 / cut) - 1 > (MUCH if frame.buckets else NOTICED))
    wanted, warnings = f"{frame.size[0]} x {frame.size[1]} px", []
    if small:
        than = f"their buckets, of about {wanted}," if frame.buckets else wanted
        warnings.append(
            f"{_pictures(small)} smaller than {than} and will be enlarged: the word learns their blur. "
            "Use larger ones, or a smaller width and height."
        )
    if cropped and frame.buckets:
        warnings.append(
            f"{_pictures(cropped)} of another shape than any bucket of about {wanted}: the middle is trained on."
        )
    elif cropped:
        warnings.append(f"{_pictures(cropped)} of another shape than {wanted}: the middle is trained on.")
    return warnings


def _about_numbers(seen: Sequence[_Seen], frame: Frame, config: TrainConfig) -> list[str]:
    count = sum(not each.planned.subset.is_reg for each in seen)
    samples = sum(each.planned.repeats for each in seen) * config.repeats
    warnings = []
    if 0 < count < FEW:
        warnings.append(
            f"Only {_pictures(count, verb=False)}: with fewer than {FEW} the word learns the background as well."
        )
    if count > MANY:
        warnings.append(f"{count} pictures: 5 to 30 good ones usually teach a word better than very many.")
    if config.batch_size > samples > 0:
        warnings.append(
            f"The batch size {config.batch_size} is more than there are pictures: some come up twice in a batch."
        )
    elif frame.buckets:
        warnings += _about_buckets(seen, frame, config)
    return warnings


def _about_buckets(seen: Sequence[_Seen], frame: Frame, config: TrainConfig) -> list[str]:
    samples: Counter[tuple[int, int] | None] = Counter()
    for each in seen:
        samples[frame.size_for(each.size)] += each.planned.repeats * config.repeats
    few = [f"{number} of {size[0]} x {size[1]}" for size, number in samples.items() if size and number < config.batch_size]
    if not few:
        return []
    return [
        f"Fewer pictures in a bucket than the batch size {config.batch_size} ({', '.join(few)}): they wait, over epochs, "
        "for a full batch."
    ]


def _about_prompts(
    seen: Sequence[_Seen], template: Sequence[str], tokenized: Sequence[tuple[str, TokenizedPrompt]]
) -> list[str]:
    warnings = []
    things = [each.planned for each in seen if not each.planned.subset.is_reg]
    captioned = sum(each.subset.has_caption(each.path) for each in things)
    by_name = [each for each in things if not each.subset.has_caption(each.path) and not each.subset.class_tokens]
    uses_captions = any(FILEWORDS in line for line in template)
    if uses_captions and by_name:
        endings = " or ".join(dict.fromkeys(each.subset.caption_extension for each in by_name))
        warnings.append(
            f"{_pictures(len(by_name))} without a {endings} file: the file's name is the caption. If names say "
            "nothing, take a template without [filewords]."
        )
    if not uses_captions and captioned:
        warnings.append(
            f"{_pictures(captioned)} with a caption, but the template has no [filewords]: captions are not used."
        )
    long = [prompt for prompt, each in tokenized if len(each.chunks) > 1]
    if long:
        warnings.append(f"Longer than {CHUNK} tokens, so that it is fed in parts: {long[0]!r}.")
    warnings += syntax_warnings("captions", *(each.caption for each in seen))
    if any(each.stranded for _, each in tokenized):
        warnings.append(STRANDED.format("word", "prompt"))
    if any(not each.splices for _, each in tokenized):
        warnings.append("The word is not found in a prompt: its name may be a part of another embedding's.")
    return warnings


def _pictures(count: int, *, verb: bool = True) -> str:
    return (
        (f"{count} picture is" if count == 1 else f"{count} pictures are") if verb else f"{count} picture{'s' * (count > 1)}"
    )
