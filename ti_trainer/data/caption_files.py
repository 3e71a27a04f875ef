"""Which text file beside an image is its caption, by name alone. Reads no file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

TXT = ".txt"
ENDINGS = (TXT, ".caption")  # the first that an image has counts; the second is the default of kohya's trainers


def endings_of(extension: str = TXT) -> tuple[str, ...]:
    """The endings that are looked for: what a data set asks for, and .caption as well where that is the usual .txt."""
    return ENDINGS if extension.lower() == TXT else (extension.lower(),)


def captions_among(files: Iterable[Path], images: Iterable[Path], extension: str = TXT) -> dict[Path, Path]:
    """The caption file of each image that has one: 01.txt of 01.png, or else 01.png.txt; capitals make no difference."""
    named = _by_beginning(files, extension)
    return {image: found for image in images if (found := _first(named, image, extension)) is not None}


def second_captions(files: Iterable[Path], images: Iterable[Path], extension: str = TXT) -> list[Path]:
    """Caption files of images that have a better one, such as 01.caption beside 01.txt."""
    named, images = _by_beginning(files, extension), list(images)
    taken = {_first(named, image, extension) for image in images}
    fitting = {file for image in images for ending in endings_of(extension) for file in _all(named, image, ending)}
    return sorted(fitting - taken)


_Named = Mapping[tuple[Path, str, str], "list[Path]"]  # by folder, ending in lower case, and what comes before it


def _by_beginning(files: Iterable[Path], extension: str) -> _Named:
    named: defaultdict[tuple[Path, str, str], list[Path]] = defaultdict(list)
    for file in files:
        for ending in endings_of(extension):
            if file.name.lower().endswith(ending):
                named[file.parent, ending, file.name[: -len(ending)]].append(file)
    return named


def _all(named: _Named, image: Path, ending: str) -> list[Path]:
    """Those of one ending, the best first."""
    both = (named.get((image.parent, ending, beginning), []) for beginning in (image.stem, image.name))
    return [file for some in both for file in sorted(some, key=lambda file: (not file.name.endswith(ending), file.name))]


def _first(named: _Named, image: Path, extension: str) -> Path | None:
    return next((file for ending in endings_of(extension) for file in _all(named, image, ending)), None)
