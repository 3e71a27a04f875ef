"""Copy images that were uploaded to the page into a folder of the training runs."""

from __future__ import annotations

import hashlib
import itertools
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from ti_trainer.data.caption_files import ENDINGS
from ti_trainer.data.image_formats import how_to_read, image_endings
from ti_trainer.data.open_image import opened_image
from ti_trainer.errors import ConfigError, DatasetError
from ti_trainer.files import atomic, checked_name, is_within, upload_folders
from ti_trainer.host import Host
from ti_trainer.runs.datasets import uploads_dir

LONGEST_STEM = 100  # characters
NAMED = 5  # files in a message


@dataclass(frozen=True)
class Uploads:
    """Uploaded files: images, their captions, and what is neither, with reasons."""

    images: tuple[Path, ...] = ()
    captions: tuple[Path, ...] = ()
    refused: tuple[tuple[str, str], ...] = field(default_factory=tuple)

    @classmethod
    def of(cls, files: Sequence[Path]) -> Uploads:
        """Sort uploaded files; ConfigError for one that is not in a folder for uploads."""
        images, captions, refused = [], [], []
        for file in files:
            if not any(is_within(file, folder) for folder in upload_folders()):
                message = f"{file.name} is not an uploaded file: drop the images again."
                raise ConfigError(message)
            if file.suffix.lower() in ENDINGS:
                captions.append(file)
            elif reason := _why_no_image(file):
                refused.append((file.name, reason))
            else:
                images.append(file)
        stems = {file.stem for file in images}
        refused += [(file.name, "no image of this name") for file in captions if file.stem not in stems]
        return cls(tuple(images), tuple(file for file in captions if file.stem in stems), tuple(refused))

    @property
    def about_refused(self) -> str:
        """A sentence that names the files that are not used; "" if there are none."""
        some = ", ".join(f"{name} ({reason})" for name, reason in self.refused[:NAMED])
        more = f" and {len(self.refused) - NAMED} more" if len(self.refused) > NAMED else ""
        return f"Not used: {some}{more}." if some else ""

    def keep(self, host: Host, name: str) -> Path:
        """Copy images and captions into a folder named after the embedding; numbered if that has other files.

        ConfigError for an invalid name, DatasetError if there is no image.
        """
        if not self.images:
            message = "None of the uploaded files is an image that can be read. Choose .png, .jpg or .webp files."
            raise DatasetError(" ".join(filter(None, (message, self.about_refused))))
        parent, content = uploads_dir(host).resolve(), self._content()
        checked_name(name)
        for number in itertools.count(1):
            folder = parent / (name if number == 1 else f"{name}-{number}")
            if not folder.exists():
                break
            if Counter(map(_digest, (each for each in folder.iterdir() if each.is_file()))) == content:
                return folder
        taken: set[str] = set()
        for image in self.images:
            stem = _free_stem(image.stem, taken)
            _copy(image, folder / f"{stem}{image.suffix.lower()}")
            for caption in self._captions_of(image):
                _copy(caption, folder / f"{stem}{caption.suffix.lower()}")
        return folder

    def _captions_of(self, image: Path) -> list[Path]:
        """Its captions. Of images with the same name, the first has the first caption, and so on."""
        same = [each for each in self.images if each.stem == image.stem]
        by_ending: dict[str, list[Path]] = {}
        for each in self.captions:
            if each.stem == image.stem:
                by_ending.setdefault(each.suffix.lower(), []).append(each)
        place = next(number for number, each in enumerate(same) if each is image)
        return [found[min(place, len(found) - 1)] for found in by_ending.values()]

    def _content(self) -> Counter[str]:
        """The digests of the files that `keep` writes."""
        captions = [caption for image in self.images for caption in self._captions_of(image)]
        return Counter(map(_digest, (*self.images, *captions)))


def _why_no_image(file: Path) -> str:
    """Why a file cannot be used as an image; "" if it can. Its pixels are not read."""
    if file.suffix.lower() not in image_endings():
        return how_to_read(file.suffix) or "not an image"
    try:
        with opened_image(file):
            return ""
    except (DatasetError, OSError) as error:
        return str(error).rstrip(".")


def _free_stem(stem: str, taken: set[str]) -> str:
    """A file name that is valid everywhere and not taken, without its ending."""
    bare = re.sub(r"[^\w\-. ]", "_", PureWindowsPath(stem).name)[:LONGEST_STEM].strip(" .") or "image"
    try:
        checked_name(bare)
    except ConfigError:  # reserved by Windows
        bare = f"_{bare}"
    number, free = 1, bare
    while free.casefold() in taken:
        number += 1
        free = f"{bare}_{number}"
    taken.add(free.casefold())
    return free


def _copy(file: Path, to: Path) -> None:
    with atomic(to) as new:
        shutil.copyfile(file, new)


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        digest = hashlib.sha256()
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
