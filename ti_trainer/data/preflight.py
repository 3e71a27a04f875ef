"""What a run would do with a dataset, looked at before it: which images, how they are fed, and what is likely to go wrong.

Reads captions, headers of all images and pixels of a few; encodes nothing, writes nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ti_trainer.config.training import TrainConfig
from ti_trainer.data import preflight_warnings
from ti_trainer.data.dataset import sample_rng
from ti_trainer.data.image_files import has_alpha, unused, upright_size
from ti_trainer.data.images import Frame, frame_of
from ti_trainer.data.open_image import is_transparent, opened_image
from ti_trainer.data.plan import Captions, Planned, plan
from ti_trainer.data.prompts import Prompter, plain_name
from ti_trainer.data.subsets import Subset
from ti_trainer.formats.naming import syntax_warnings
from ti_trainer.model import DiffusionModel, Vectors
from ti_trainer.prompts import CHUNK, TokenizedPrompt

PROMPTS = 10  # are shown
MOST_ALPHA = 64  # images that may be transparent, whose pixels are read
BEGINNING = 1 << 16  # bytes of a file that are compared before the rest is read
LONGEST = 100  # captions, of which those that fill more than a chunk are looked for


@dataclass(frozen=True)
class Seen:
    """An image that can be opened, its (width, height) in px, held upright, and whether any of it is transparent."""

    planned: Planned
    size: tuple[int, int]
    is_transparent: bool = False


@dataclass(frozen=True)
class Preflight:
    """What was found. `prompts` are some as they will be fed; `unreadable` images are named with the reasons.

    Of those `warnings` say nothing: who reads all images says so of each.
    """

    planned: tuple[Planned, ...]
    seen: tuple[Seen, ...]
    unreadable: tuple[tuple[str, str], ...]
    frame: Frame
    prompts: tuple[tuple[str, TokenizedPrompt], ...]
    warnings: tuple[str, ...]

    @property
    def captioned(self) -> int:
        """How many images have a caption file."""
        return sum(each.planned.caption_file is not None for each in self.seen)

    @property
    def masked(self) -> int:
        """How many images have a mask."""
        return sum(each.planned.mask is not None for each in self.seen)


def preflight(
    subsets: Sequence[Subset],
    prompter: Prompter,
    config: TrainConfig,
    model: DiffusionModel,
    vectors: Vectors,
    look_at: Callable[[Planned, Image.Image], None] = lambda planned, opened: None,
) -> Preflight:
    """Look at these folders as such a run would; DatasetError or ConfigError as in the run.

    `look_at` gets every image as it is opened; one that it cannot read is unreadable.
    """
    said: list[str] = []
    captions = Captions(prompter, config.filename_word_regex, config.filename_join_string)
    planned = plan(subsets, model, captions, said.append)
    seen, broken = _headers(planned, look_at)
    frame = frame_of(config, model.default_size_px)

    def name_of(path: Path) -> str:
        return path.name if len(subsets) == 1 else f"{path.parent.name}/{path.name}"

    def tokenized(prompts: Sequence[str]) -> tuple[tuple[str, TokenizedPrompt], ...]:
        return tuple((prompt, model.tokenize(prompt, {prompter.name: vectors})) for prompt in prompts)

    unreadable = [(name_of(path), reason) for path, reason in broken]
    same = [[name_of(path) for path in paths] for paths in same_files([each.planned.path for each in seen])]
    shown = tokenized(_prompts(seen, prompter, config.seed))
    sizes, things = Counter(each.size for each in seen), [each.planned for each in seen if not each.planned.subset.is_reg]
    fed = [(each.size, each.planned.repeats * config.repeats) for each in seen]
    said += [
        *_unused(subsets),
        *preflight_warnings.about_same_files(same),
        *preflight_warnings.about_transparency([each.planned for each in seen if each.is_transparent], frame, MOST_ALPHA),
        *preflight_warnings.about_sizes(sizes, frame),
        *preflight_warnings.about_numbers(len(things), fed, frame, config.batch_size),
        *preflight_warnings.about_captions(
            things, prompter, plain_name(config.template), named=bool(config.filename_word_regex)
        ),
        *syntax_warnings("captions", *(each.planned.caption or "" for each in seen)),
        *preflight_warnings.about_prompts((*shown, *tokenized(_longest(things, prompter)))),
    ]
    return Preflight(tuple(planned), tuple(seen), tuple(unreadable), frame, shown, tuple(said))


def same_files(paths: Sequence[Path]) -> list[list[Path]]:
    """Files with the same content, together; only those of the same length and beginning are read whole."""
    found = [list(paths)]
    for key in (lambda path: path.stat().st_size, lambda path: _digest(path, BEGINNING), _digest):
        parts: list[list[Path]] = []
        for same in found:
            by_key: dict[Any, list[Path]] = defaultdict(list)
            for path in same:
                by_key[key(path)].append(path)
            parts += [each for each in by_key.values() if len(each) > 1]
        found = parts
    return found


def _digest(path: Path, most: int = -1) -> bytes:
    """Of the first `most` bytes of a file, or of all."""
    with path.open("rb") as file:
        return hashlib.sha256(file.read(most)).digest()


def _headers(
    planned: Sequence[Planned], look_at: Callable[[Planned, Image.Image], None]
) -> tuple[list[Seen], list[tuple[Path, str]]]:
    """The images that can be opened, and the others with the reasons."""
    seen: list[Seen] = []
    broken: list[tuple[Path, str]] = []
    alpha = 0
    for each in planned:
        try:
            with opened_image(each.path) as opened:
                size = upright_size(opened)
                alpha += has_alpha(opened)
                transparent = alpha <= MOST_ALPHA and is_transparent(opened)
                look_at(each, opened)
            seen.append(Seen(each, size, transparent))
        except Exception as error:  # noqa: PERF203 - a damaged file provokes anything
            broken.append((each.path, str(error).replace(str(each.path), each.path.name) or type(error).__name__))
    return seen, broken


def _unused(subsets: Sequence[Subset]) -> list[str]:
    """What lies in the folders and is not used, each folder looked at once."""
    folders: dict[Path, Subset] = {}
    for subset in subsets:
        folders.setdefault(subset.folder, subset)
    elsewhere = [*folders, *(subset.masks for subset in subsets if subset.masks is not None)]
    where: Callable[[Path], str] = lambda folder: f"{folder.name}: " if len(folders) > 1 else ""  # noqa: E731
    return [
        where(folder) + sentence
        for folder, subset in folders.items()
        for sentence in unused(folder, extension=subset.caption_extension, apart_from=elsewhere)
    ]


def _prompts(seen: Sequence[Seen], prompter: Prompter, seed: int) -> list[str]:
    """As many as are shown, from the first image again where there are fewer."""
    chosen = [seen[number % len(seen)].planned for number in range(PROMPTS)] if seen else []
    return [
        prompter.alone(each.caption) if each.subset.is_reg else prompter(each.caption, sample_rng(seed, number))
        for number, each in enumerate(chosen)
    ]


def _longest(things: Sequence[Planned], prompter: Prompter) -> list[str]:
    """The longest prompts that there may be, if they could fill more than a chunk: a token is a byte at least."""
    longest = sorted({each.caption for each in things if each.caption}, key=len, reverse=True)[:LONGEST]
    return [prompt for caption in longest if len((prompt := prompter.longest(caption)).encode()) > CHUNK]
