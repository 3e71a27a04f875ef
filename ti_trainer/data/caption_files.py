"""Match caption files to images by name, without reading them."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

GENERATED = "generated"  # the folder of folders with images that were generated to learn from a prompt
CONTEXTS = "contexts.txt"  # the prompts of such images, beside them
TXT = ".txt"
ENDINGS = (TXT, ".caption")  # the first that an image has counts; the second is the default of kohya's trainers


def endings_of(extension: str = TXT) -> tuple[str, ...]:
    """The endings that are looked for: what a dataset asks for, and .caption as well where that is the usual .txt."""
    return ENDINGS if extension.lower() == TXT else (extension.lower(),)


def captions_among(files: Iterable[Path], images: Iterable[Path], extension: str = TXT) -> dict[Path, Path]:
    """The caption file of each image that has one: 01.txt of 01.png, or else 01.png.txt.

    Capitals make no difference, nor how accents are written, unless it is not clear then which file belongs to which image.
    """
    return {image: fitting[0] for image, fitting in _fitting(files, images, extension).items() if fitting}


def second_captions(files: Iterable[Path], images: Iterable[Path], extension: str = TXT) -> list[Path]:
    """Caption files of images that have a better one, such as 01.caption beside 01.txt."""
    found = _fitting(files, images, extension).values()
    return sorted({file for fitting in found for file in fitting} - {fitting[0] for fitting in found if fitting})


def composed(name: str) -> str:
    """With each accent and its letter as one sign: archives made on a Mac have two, which look the same."""
    return unicodedata.normalize("NFC", name)


_Named = Mapping[tuple[Path, str, str], "list[Path]"]  # by folder, ending in lower case, and what comes before it


def _alike(name: str) -> str:
    return composed(composed(name).casefold())


def _fitting(files: Iterable[Path], images: Iterable[Path], extension: str) -> dict[Path, list[Path]]:
    """Of each image the caption files, the best first: those with exactly its name before those with one like it."""
    files, images, endings = list(files), list(images), endings_of(extension)
    exact, loose = _by_beginning(files, endings, str), _by_beginning(files, endings, _alike)
    found = {image: [file for ending in endings for file in _all(exact, image, ending, str)] for image in images}
    taken = {file for fitting in found.values() for file in fitting}
    stems: defaultdict[tuple[Path, str], set[str]] = defaultdict(set)
    for image in images:
        stems[image.parent, _alike(image.stem)].add(image.stem)
    for image, fitting in found.items():
        if len(stems[image.parent, _alike(image.stem)]) == 1:
            for ending in endings:
                more = [file for file in _all(loose, image, ending, _alike) if file not in taken]
                fitting += more if fitting or len(more) == 1 else []
    return found


def _by_beginning(files: Iterable[Path], endings: Sequence[str], key: Callable[[str], str]) -> _Named:
    named: defaultdict[tuple[Path, str, str], list[Path]] = defaultdict(list)
    for file in files:
        for ending in endings:
            if file.name.lower().endswith(ending):
                named[file.parent, ending, key(file.name[: -len(ending)])].append(file)
    return named


def _all(named: _Named, image: Path, ending: str, key: Callable[[str], str]) -> list[Path]:
    """Those of one ending, the best first."""
    both = (named.get((image.parent, ending, key(beginning)), []) for beginning in (image.stem, image.name))
    return [file for some in both for file in sorted(some, key=lambda file: (not file.name.endswith(ending), file.name))]
