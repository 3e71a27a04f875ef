"""Preflight: check a dataset before a run, as the run would use it, and warn of what is likely to go wrong.

Reads captions, the headers of all images and the pixels of a few. Encodes and writes nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ti_trainer.config.training import TrainConfig
from ti_trainer.data import preflight_warnings
from ti_trainer.data.dataset import sample_rng
from ti_trainer.data.image_files import unused
from ti_trainer.data.images import Frame, frame_of
from ti_trainer.data.listing import Listing
from ti_trainer.data.open_image import is_transparent, on_white, opened_image
from ti_trainer.data.plan import Captions, Planned, list_subsets, plan
from ti_trainer.data.prompts import Prompter, plain_name
from ti_trainer.data.subsets import Subset
from ti_trainer.data.upright import has_alpha, upright, upright_size
from ti_trainer.formats.naming import syntax_warnings
from ti_trainer.model import DiffusionModel, Vectors
from ti_trainer.prompts import CHUNK, TokenizedPrompt

PROMPTS = 10  # in the result
THUMBNAIL_PX = 192
MOST_ALPHA = 64  # images with an alpha channel whose pixels are read
BEGINNING = 1 << 16  # bytes of a file that are compared before the rest is read
LONGEST = 100  # captions that are tokenized, to find prompts of more than one chunk
Size = tuple[int, int]


@dataclass(frozen=True)
class Seen:
    """An image that can be opened: its upright (width, height) in px, and whether any pixel is transparent."""

    planned: Planned
    size: Size
    is_transparent: bool = False


@dataclass(frozen=True)
class Preflight:
    """What the check found. `prompts` are examples of the prompts of a run; `unreadable` are images with reasons.

    `warnings` leave out unreadable images, because a run logs each when it loads them. `thumbnails` have captions.
    """

    planned: tuple[Planned, ...]
    seen: tuple[Seen, ...]
    unreadable: tuple[tuple[str, str], ...]
    frame: Frame
    prompts: tuple[tuple[str, TokenizedPrompt], ...]
    warnings: tuple[str, ...]
    thumbnails: tuple[tuple[Image.Image, str], ...] = ()
    folders: int = 1

    @property
    def count(self) -> int:
        """The number of images, unreadable ones included."""
        return len(self.planned)

    @property
    def captioned(self) -> int:
        """The number of images with a caption file."""
        return sum(each.planned.caption_file is not None for each in self.seen)

    @property
    def masked(self) -> int:
        """The number of images with a mask."""
        return sum(each.planned.mask is not None for each in self.seen)

    @property
    def sizes(self) -> list[tuple[Size, int]]:
        """The (width, height) of images, each with the number of images, most frequent first."""
        return Counter(each.size for each in self.seen).most_common()

    @property
    def buckets(self) -> list[tuple[Size, int]]:
        """The same for the buckets of images; empty without buckets."""
        sizes = (self.frame.size_for(each.size) for each in self.seen if self.frame.buckets)
        return Counter(size for size in sizes if size is not None).most_common()

    @property
    def unreadable_warnings(self) -> list[str]:
        """Sentences about the images that cannot be read."""
        return preflight_warnings.about_unreadable(self.unreadable)


def preflight(
    subsets: Sequence[Subset],
    prompter: Prompter,
    config: TrainConfig,
    model: DiffusionModel,
    vectors: Vectors,
    thumbnails: int = 0,
) -> Preflight:
    """Check the images of subsets for a run with these options; DatasetError or ConfigError as in the run.

    `thumbnails`: how many of the first images to make small versions of. An image that cannot be decoded for that is
    unreadable.
    """
    warnings: list[str] = []
    captions = Captions(prompter, config.filename_word_regex, config.filename_join_string)
    listings = list_subsets(subsets)
    planned = plan(subsets, model, captions, warnings.append, listings)
    seen, broken, small = _open_all(planned, thumbnails)
    frame = frame_of(config, model.default_size_px)

    def name_of(path: Path) -> str:
        return path.name if len(subsets) == 1 else f"{path.parent.name}/{path.name}"

    def tokenized(prompts: Sequence[str]) -> tuple[tuple[str, TokenizedPrompt], ...]:
        return tuple((prompt, model.tokenize(prompt, {prompter.name: vectors})) for prompt in prompts)

    unreadable = [(name_of(path), reason) for path, reason in broken]
    same = [[name_of(path) for path in paths] for paths in same_files([each.planned.path for each in seen])]
    prompts = tokenized(_prompts(seen, prompter, config.seed))
    concept = [each.planned for each in seen if not each.planned.subset.is_reg]
    samples = [(each.size, each.planned.repeats * config.repeats) for each in seen]
    plain = plain_name(config.template)
    warnings += [
        *_unused(subsets, listings),
        *preflight_warnings.about_same_files(same),
        *preflight_warnings.about_transparency([each.planned for each in seen if each.is_transparent], frame, MOST_ALPHA),
        *preflight_warnings.about_sizes(Counter(each.size for each in seen), frame),
        *preflight_warnings.about_numbers(len(concept), samples, frame, config.batch_size),
        *preflight_warnings.about_captions(concept, prompter, plain, has_regex=bool(config.filename_word_regex)),
        *syntax_warnings("captions", *(each.planned.caption or "" for each in seen)),
        *preflight_warnings.about_prompts((*prompts, *tokenized(_longest(concept, prompter)))),
    ]
    return Preflight(
        tuple(planned), tuple(seen), tuple(unreadable), frame, prompts, tuple(warnings), tuple(small), len(subsets)
    )


def same_files(paths: Sequence[Path]) -> list[list[Path]]:
    """Groups of files with the same content. Only files of the same length and beginning are read whole."""
    keys: tuple[Callable[[Path], Hashable], ...] = (
        lambda path: path.stat().st_size,
        lambda path: _digest(path, BEGINNING),
        _digest,
    )
    found = [list(paths)]
    for key in keys:
        parts: list[list[Path]] = []
        for same in found:
            by_key: dict[Hashable, list[Path]] = defaultdict(list)
            for path in same:
                by_key[key(path)].append(path)
            parts += [each for each in by_key.values() if len(each) > 1]
        found = parts
    return found


def _digest(path: Path, most: int = -1) -> bytes:
    """Of the first `most` bytes of a file, or of all."""
    with path.open("rb") as file:
        return hashlib.sha256(file.read(most)).digest()


def _open_all(
    planned: Sequence[Planned], thumbnails: int
) -> tuple[list[Seen], list[tuple[Path, str]], list[tuple[Image.Image, str]]]:
    """The images that can be opened, the others with reasons, and thumbnails with captions."""
    seen: list[Seen] = []
    broken: list[tuple[Path, str]] = []
    small: list[tuple[Image.Image, str]] = []
    alpha = 0
    for each in planned:
        try:
            with opened_image(each.path) as opened:
                size = upright_size(opened)
                alpha += has_alpha(opened)
                transparent = alpha <= MOST_ALPHA and is_transparent(opened)
                if len(small) < thumbnails:
                    small.append((_thumbnail(opened), each.caption or ""))
            seen.append(Seen(each, size, transparent))
        except Exception as error:  # noqa: PERF203 - a damaged file can raise anything
            broken.append((each.path, str(error).replace(str(each.path), each.path.name) or type(error).__name__))
    return seen, broken, small


def _thumbnail(opened: Image.Image) -> Image.Image:
    small = upright(opened, (2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX))
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    return on_white(small)


def _unused(subsets: Sequence[Subset], listings: Mapping[Path, Listing]) -> list[str]:
    """Files in the folders that are not used; each folder is checked once."""
    folders: dict[Path, Subset] = {}
    for subset in subsets:
        folders.setdefault(subset.folder, subset)
    apart = [*folders, *(subset.masks for subset in subsets if subset.masks is not None)]
    prefix: Callable[[Path], str] = lambda folder: f"{folder.name}: " if len(folders) > 1 else ""  # noqa: E731
    return [
        prefix(folder) + sentence
        for folder, subset in folders.items()
        for sentence in unused(folder, extension=subset.caption_extension, apart_from=apart, listing=listings[folder])
    ]


def _prompts(seen: Sequence[Seen], prompter: Prompter, seed: int) -> list[str]:
    """Examples of prompts; with few images, several of each."""
    chosen = [seen[number % len(seen)].planned for number in range(PROMPTS)] if seen else []
    return [
        prompter.alone(each.caption) if each.subset.is_reg else prompter(each.caption, sample_rng(seed, number))
        for number, each in enumerate(chosen)
    ]


def _longest(concept: Sequence[Planned], prompter: Prompter) -> list[str]:
    """The longest prompts that may exceed a chunk: a token is at least one byte."""
    longest = sorted({each.caption for each in concept if each.caption}, key=len, reverse=True)[:LONGEST]
    return [prompt for caption in longest if len((prompt := prompter.longest(caption)).encode()) > CHUNK]
