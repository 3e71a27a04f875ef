"""Image files: which there are, how large they are held upright, and their pixels. Knows no tensors: workers load this.

Sizes are (width, height) in pixels.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from ti_trainer.data.caption_files import ENDINGS, TXT, captions_among, second_captions
from ti_trainer.data.frames import has_frames
from ti_trainer.data.image_formats import image_endings, install_command, packages
from ti_trainer.data.mask_names import masks_alone, masks_of_others, without_masks
from ti_trainer.errors import DatasetError
from ti_trainer.wording import counted

ORIENTATION = 0x0112  # EXIF
FLIPPED = "-flipped"  # how the names of mirrored copies end
LEFT_OUT = "left out"  # the sub-folder for images that somebody took out of a dataset
BACKUP = "captions-backup"  # the sub-folder for captions as they were before somebody edited them
UNSPREAD = ".unspread"  # the ending of what a spread mask was before; no image's, so nothing trains on it

QUIET = {"thumbs.db", "desktop.ini", "ehthumbs.db"}  # what Windows leaves in folders; other systems hide theirs
# The endings of what people expect to be read, by what it is. Those of images only where they cannot be opened here.
RAW = ".3fr .arw .cr2 .cr3 .crw .dng .erf .iiq .kdc .mef .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl .sr2 .srf .srw .x3f"
VIDEO = ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv"
OTHER_IMAGES = ".ai .avif .bpg .clip .eps .jpegxr .jxr .kra .ora .pdf .ps .sai .svg .svgz .wdp .xcf"
LISTS = ".csv .json .jsonl .parquet .tsv .xml .yaml .yml"
ARCHIVES = ".7z .gz .rar .tar .tgz .zip"
MOST_FOLDERS, MOST_FILES, MOST_SECONDS = 50, 1000, 1.0  # somebody may have named a whole disk: sub-folders, entries of each


def is_image(path: Path) -> bool:
    """Whether a file's name says that it is an image, and not a hidden one."""
    return path.suffix.lower() in image_endings() and not path.name.startswith(".")


def unspread_of(path: Path) -> str:
    """The stem of the mask whose earlier state a file keeps, "a_att" of a_att.unspread and a_att-2.unspread; "" if none."""
    return re.sub(r"-\d+$", "", path.stem) if path.suffix == UNSPREAD else ""


def files_in(folder: Path) -> list[Path]:
    """The files of a folder by name, but not hidden ones, nor folders, pipes and links that lead nowhere."""
    with os.scandir(folder) as entries:
        return sorted(folder / each.name for each in entries if not each.name.startswith(".") and _is_file(each))


def files_below(folder: Path) -> Iterator[Path]:
    """The files of a folder and its sub-folders, also of linked ones, but each folder once, though links may go in circles.

    Hidden folders are passed over as hidden files are, and so is what was left out, or kept before a change.
    """
    for files in _listings(folder):
        yield from files


def _listings(folder: Path) -> Iterator[list[Path]]:
    """The files of a folder, then those of each folder below."""
    seen, waiting = set[str](), [folder]
    while waiting:
        here = waiting.pop()
        if (real := os.path.realpath(here)) in seen:
            continue
        seen.add(real)
        try:
            yield files_in(here)
            waiting += reversed(folders_in(here))
        except PermissionError:
            if here == folder:
                raise


def folders_in(folder: Path) -> list[Path]:
    """The sub-folders that may hold images of somebody's, by name; a link is one too."""
    with os.scandir(folder) as entries:
        names = sorted(each.name for each in entries if _is_folder(each))
    return [folder / name for name in names if not name.startswith(".") and name not in (LEFT_OUT, BACKUP)]


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def images_among(paths: Iterable[Path]) -> list[Path]:
    """Those of the files, of one folder or of several, whose names say that they are images; by name, without masks."""
    return without_masks(sorted(path for path in paths if is_image(path)))


def has_images(folder: Path) -> bool:
    """Whether there is an image in the folder itself."""
    return any(map(is_image, files_in(folder)))


def find_images(folder: Path) -> list[Path]:
    """Every image of the folder by name, whatever its format, but no masks; DatasetError if there is none."""
    if not folder.is_dir():
        raise DatasetError(_no_folder(folder))
    found = images_among(files_in(folder))
    if not found:
        message = f"There are no images in {folder}: put some there (.png, .jpg, .webp, ...), 5 to 30 of the same thing."
        raise DatasetError(" ".join([message, *unused(folder)]))
    return found


def unused(folder: Path, recursive: bool = False, extension: str = TXT, apart_from: Collection[Path] = ()) -> list[str]:
    """What somebody put into a folder of images that is not used, in sentences: which files, how many, why, what to do.

    `recursive`: the sub-folders are used, too. `extension` is that of caption files. `apart_from` are sub-folders that are
    used for something else. Says nothing of a folder that is not there.
    """
    if not folder.is_dir():
        return []
    files = list(files_below(folder)) if recursive else files_in(folder)
    named: Callable[[Path], str] = lambda path: str(path.relative_to(folder))  # noqa: E731
    images = [path for path in files if is_image(path)]
    unmasked = without_masks(images)
    captions = captions_among(files, unmasked, extension)
    second = second_captions(files, unmasked, extension)
    others = [path for path in files if not is_image(path) and path.name.lower() not in QUIET and not unspread_of(path)]
    others = sorted(set(others) - set(captions.values()) - set(second))
    texts = [path for path in others if path.suffix.lower() in (*ENDINGS, extension.lower())]
    said = _about_endings([path for path in others if path not in set(texts)], named)
    of_images = {*captions_among(texts, unmasked).values(), *second_captions(texts, unmasked)} if extension != TXT else ()
    if of_images:
        listed = _some(named(path) for path in texts if path in of_images)
        said.append(f"Not used, since captions end with {extension} in this dataset: {listed}.")
    if alone := [path for path in texts if path not in of_images]:
        said.append(f"Captions without an image of their name are not used: {_some(map(named, alone))}.")
    if second:
        said.append(f"Not used, since these images have another caption file: {_some(map(named, second))}.")
    if empty := sorted({path for path in captions.values() if _is_empty(path)}):
        said.append(f"Empty caption files: {_some(map(named, empty))}.")
    if frames := Counter(path.suffix.lower() for path in unmasked if has_frames(path)):
        said.append(f"Of {_counts(frames)} the first frame is used, not the others.")
    said += _about_masks(images, named)
    return said + _about_entries(folder, named) + ([] if recursive else _about_folders(folder, apart_from))


def _about_masks(images: Sequence[Path], named: Callable[[Path], str]) -> list[str]:
    """Masks that are used neither as such nor as images."""
    said = []
    if alone := masks_alone(images):
        said.append(f"Masks without an image of their name are not used: {_some(map(named, alone))}.")
    if others := masks_of_others(images):
        said.append(
            f"Not used, since they seem to be masks of other programs: {_some(map(named, others))}. Masks are named as "
            "01-masklabel.png is for 01.png; if they are images, give them other names."
        )
    return said


def _about_endings(files: Sequence[Path], named: Callable[[Path], str]) -> list[str]:
    """Files that are neither images nor captions."""
    by_ending = Counter(path.suffix.lower() or path.name for path in files)
    said = []
    wanting = {package: Counter[str]() for package in packages().values()}
    for ending, package in packages().items():
        wanting[package][ending] = by_ending.pop(ending, 0)
    for package, found in wanting.items():
        if found.total():
            install = install_command(package)
            said.append(f"Not used: {_counts(found)}. Reading them needs {package} ({install}); or save as .png or .jpg.")
    reasons = {
        RAW: "raw photos, which are not read: save them as .png or .jpg",
        VIDEO: "videos, which are not read: save frames of them as .png or .jpg",
        OTHER_IMAGES: "images of a kind that cannot be read here: save them as .png or .jpg",
        ARCHIVES: "archives, which are not read: unpack them",
    }
    for endings, reason in reasons.items():
        found = Counter({ending: by_ending.pop(ending) for ending in endings.split() if ending in by_ending})
        if found:
            said.append(f"Not used: {_counts(found)}: {reason}.")
    if lists := [path for path in files if path.suffix.lower() in LISTS.split()]:
        for path in lists:
            by_ending.pop(path.suffix.lower(), None)
        said.append(
            f"Not used: {_some(map(named, lists))}. Captions are read from a text file for each image: 01.txt for 01.png."
        )
    return said + ([f"Not used: {_counts(by_ending)}."] if by_ending else [])


def _about_entries(folder: Path, named: Callable[[Path], str]) -> list[str]:
    """What is called like an image or a caption, and is no file."""
    with os.scandir(folder) as entries:
        odd = [each for each in entries if not each.name.startswith(".") and not _is_file(each)]
    endings = image_endings() | set(ENDINGS)
    odd = [each for each in odd if Path(each.name).suffix.lower() in endings]
    folders = sorted(folder / each.name for each in odd if _is_folder(each))
    others = sorted(folder / each.name for each in odd if not _is_folder(each))
    said = [f"Not used as files, since they are folders: {_some(map(named, folders))}."] if folders else []
    return said + ([f"No files, or links that lead nowhere: {_some(map(named, others))}."] if others else [])


def _about_folders(folder: Path, apart_from: Collection[Path]) -> list[str]:
    """Sub-folders with images in them; of many folders or files the first are looked at."""
    apart = {os.path.realpath(each) for each in (*apart_from, folder)}
    until, said, others = time.monotonic() + MOST_SECONDS, list[str](), ""
    for number, each in enumerate(folders_in(folder)):
        if number == MOST_FOLDERS or time.monotonic() > until:
            others = " and others"
            break
        if os.path.realpath(each) in apart:
            continue
        count, is_all = _images_below(each, until)
        if count:
            said.append(f"{each.name} ({'' if is_all else 'at least '}{counted(count, 'image')})")
    return [f"Sub-folders are not used: {_some(said)}{others}."] if said else []


def _images_below(folder: Path, until: float) -> tuple[int, bool]:
    """How many files look like images, and whether these are all of them."""
    looks = image_endings() | {*packages(), *RAW.split(), *OTHER_IMAGES.split()}
    images = entries = 0
    with suppress(OSError):  # one that may not be read
        for files in _listings(folder):
            images += sum(path.suffix.lower() in looks for path in files[: MOST_FILES - entries])
            entries += 1 + len(files)  # the folder itself counts: there may be very many without a file
            if entries > MOST_FILES or time.monotonic() > until:
                return images, False
    return images, True


def _is_empty(path: Path) -> bool:
    return path.stat().st_size < 64 and not path.read_bytes().strip(b"\xef\xbb\xbf \t\r\n")


def _counts(found: Counter[str]) -> str:
    """'2 .heic, 1 .heif files', the most frequent first."""
    by_count = sorted(((number, ending) for ending, number in found.items() if number), key=lambda each: (-each[0], each[1]))
    return f"{_some((f'{number} {ending}' for number, ending in by_count), 20)} file{'' if found.total() == 1 else 's'}"


def _some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _no_folder(path: Path) -> str:
    """What to say of a dataset directory that is none."""
    if re.match(r"(?i)https?:/", str(path)):
        return f"{path} is an address on the web: download the images and name their folder."
    if not path.exists():
        return f"The dataset directory {path} does not exist: name a folder with images."
    if path.suffix.lower() in ARCHIVES.split():
        return f"{path} is an archive: unpack it and name the folder with the images."
    if is_image(path):
        return f"{path} is a file, and a dataset is a folder: name the folder that it lies in, {path.absolute().parent}."
    return f"{path} is a file, and no list of folders (.toml): name a folder with images."


def upright_size(opened: Image.Image) -> tuple[int, int]:
    """The size of an image held upright, from its header."""
    return _stored_size(opened)[::-1] if _lies(opened) else opened.size


def upright(opened: Image.Image, at_least: tuple[int, int] | None = None) -> Image.Image:
    """The image of an opened file held upright, of 8 bits a channel, the first of several frames.

    A JPEG is decoded smaller where that is quick, but not smaller than `at_least`.
    """
    if at_least is not None:
        opened.draft("RGB", at_least[::-1] if _lies(opened) else at_least)
    if isinstance(opened, TiffImageFile):
        opened.load()  # turns it; Pillow before 10 then keeps the orientation, and exif_transpose would turn it again
        return eight_bit(opened.copy())
    return eight_bit(ImageOps.exif_transpose(opened))


def has_alpha(image: Image.Image) -> bool:
    """Whether it may be transparent somewhere."""
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def eight_bit(image: Image.Image) -> Image.Image:
    """Greys of 16 bits, and those between 0 and 1, brought to 8: Pillow itself would cut them off at 255."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    pixels = np.asarray(image)
    scale = 1 / 257 if image.mode != "F" else 255 if pixels.max() <= 1 else 1
    grey = Image.fromarray((pixels * scale).clip(0, 255).astype(np.uint8))
    if isinstance(see_through := image.info.get("transparency"), int):  # the grey that is
        alpha = Image.fromarray(np.where(pixels == see_through, 0, 255).astype(np.uint8))
        return Image.merge("LA", (grey, alpha))
    return grey


def _lies(opened: Image.Image) -> bool:
    """Whether it has to be turned by a quarter. Pillow's own getexif for PNG would decode the whole image for it."""
    return Image.Image.getexif(opened).get(ORIENTATION, 1) >= 5


def _stored_size(opened: Image.Image) -> tuple[int, int]:
    """The size before it is turned. That of a TIFF is given upright: by Pillow 11 always, before that once it is loaded."""
    if isinstance(opened, TiffImageFile):
        return opened.tag_v2[IMAGEWIDTH], opened.tag_v2[IMAGELENGTH]
    return opened.size
