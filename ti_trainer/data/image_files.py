"""The images of a folder, and warnings about the files in it that training does not use."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from ti_trainer.data.caption_files import CONTEXTS, ENDINGS, GENERATED, TXT, captions_among, second_captions
from ti_trainer.data.frames import has_frames
from ti_trainer.data.image_formats import image_endings, install_command, packages
from ti_trainer.data.listing import Listing, files_below, is_image, list_folder, listings_below, unspread_of
from ti_trainer.data.mask_names import masks_alone, masks_of_others, without_masks
from ti_trainer.errors import DatasetError
from ti_trainer.wording import counted

QUIET = {"thumbs.db", "desktop.ini", "ehthumbs.db"}  # files that Windows creates in folders
# Endings of files that users expect to be read, by kind. Image formats count only if they cannot be opened here.
RAW = ".3fr .arw .cr2 .cr3 .crw .dng .erf .iiq .kdc .mef .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl .sr2 .srf .srw .x3f"
VIDEO = ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv"
OTHER_IMAGES = ".ai .avif .bpg .clip .eps .jpegxr .jxr .kra .ora .pdf .ps .sai .svg .svgz .wdp .xcf"
LISTS = ".csv .json .jsonl .parquet .tsv .xml .yaml .yml"
ARCHIVES = ".7z .gz .rar .tar .tgz .zip"
# Limits for a search of subfolders, in case the user chose a whole disk.
MOST_FOLDERS, MOST_FILES, MOST_SECONDS = 50, 1000, 1.0


def find_images(folder: Path) -> list[Path]:
    """The images of a folder by name, in any format, without masks; DatasetError if there are none."""
    return list_images(folder).images


def list_images(folder: Path) -> Listing:
    """List a folder that has images; DatasetError if it does not exist or has none."""
    if not folder.is_dir():
        raise DatasetError(_no_folder(folder))
    listing = list_folder(folder)
    if not listing.images:
        message = f"There are no images in {folder}. Put 5 to 30 images of the same concept there (.png, .jpg, .webp, ...)."
        raise DatasetError(" ".join([message, *unused(folder, listing=listing)]))
    return listing


def unused(
    folder: Path,
    recursive: bool = False,
    extension: str = TXT,
    apart_from: Collection[Path] = (),
    listing: Listing | None = None,
) -> list[str]:
    """Sentences about the files of a dataset folder that are not used: which, how many, why, and what to do.

    `recursive`: subfolders are used too. `extension` is that of caption files. `apart_from` are subfolders with another
    purpose. `listing` is that of the folder, if there is one already. Empty if the folder does not exist.
    """
    if not folder.is_dir():
        return []
    listing = listing or list_folder(folder)
    files = list(files_below(folder)) if recursive else listing.files
    named: Callable[[Path], str] = lambda path: str(path.relative_to(folder))  # noqa: E731
    images = [path for path in files if is_image(path)]
    unmasked = without_masks(images)
    captions = captions_among(files, unmasked, extension)
    second = second_captions(files, unmasked, extension)
    rest = {path for path in files if not is_image(path) and not _is_quiet(path)}
    others = sorted(rest - set(captions.values()) - set(second))
    texts = [path for path in others if path.suffix.lower() in (*ENDINGS, extension.lower())]
    found = _about_endings([path for path in others if path not in set(texts)], named)
    found += _about_texts(texts, unmasked, extension, named)
    if second:
        found.append(f"Not used, because their images have another caption file: {_some(map(named, second))}.")
    if empty := sorted({path for path in captions.values() if _is_empty(path)}):
        found.append(f"These caption files are empty: {_some(map(named, empty))}. Write captions, or delete the files.")
    if frames := Counter(path.suffix.lower() for path in unmasked if has_frames(path)):
        found.append(f"Only the first frame or page is used of {_counts(frames)}.")
    found += _about_masks(images, named) + _about_entries(listing, named)
    return found if recursive else found + _about_subfolders(listing, apart_from)


def _is_quiet(path: Path) -> bool:
    """Whether a file is the system's or our own."""
    contexts = path.name == CONTEXTS and path.absolute().parent.parent.name == GENERATED
    return contexts or path.name.lower() in QUIET or bool(unspread_of(path))


def _about_texts(texts: Sequence[Path], images: Sequence[Path], extension: str, named: Callable[[Path], str]) -> list[str]:
    """Text files that are not the caption of an image."""
    found, other = [], set[Path]()
    if extension != TXT:
        other = {*captions_among(texts, images).values(), *second_captions(texts, images)}
    if other:
        listed = _some(named(path) for path in texts if path in other)
        found.append(f"Not used, because captions of this dataset end with {extension}: {listed}.")
    if alone := [path for path in texts if path not in other]:
        found.append(f"Captions without an image of the same name are not used: {_some(map(named, alone))}.")
    return found


def _about_masks(images: Sequence[Path], named: Callable[[Path], str]) -> list[str]:
    """Masks that are used neither as masks nor as images."""
    found = []
    if alone := masks_alone(images):
        found.append(f"Masks without an image of the same name are not used: {_some(map(named, alone))}.")
    if others := masks_of_others(images):
        found.append(
            f"Not used, because they look like masks made by another program: {_some(map(named, others))}. Name masks like "
            "01-masklabel.png for 01.png. If they are images to train on, rename them."
        )
    return found


def _about_endings(files: Sequence[Path], named: Callable[[Path], str]) -> list[str]:
    """Files that are neither images nor captions."""
    by_ending = Counter(path.suffix.lower() or path.name for path in files)
    found = []
    by_package = {package: Counter[str]() for package in packages().values()}
    for ending, package in packages().items():
        by_package[package][ending] = by_ending.pop(ending, 0)
    for package, counts in by_package.items():
        if counts.total():
            install = install_command(package)
            found.append(f"Not used: {_counts(counts)}. To read them, install {package} ({install}). Or save .png or .jpg.")
    reasons = {
        RAW: "Raw photos cannot be read. Save them as .png or .jpg",
        VIDEO: "Videos cannot be read. Save frames as .png or .jpg",
        OTHER_IMAGES: "This image format cannot be read here. Save them as .png or .jpg",
        ARCHIVES: "Archives cannot be read. Extract them",
    }
    for endings, reason in reasons.items():
        counts = Counter({ending: by_ending.pop(ending) for ending in endings.split() if ending in by_ending})
        if counts:
            found.append(f"Not used: {_counts(counts)}. {reason}.")
    if lists := [path for path in files if path.suffix.lower() in LISTS.split()]:
        for path in lists:
            by_ending.pop(path.suffix.lower(), None)
        found.append(
            f"Not used: {_some(map(named, lists))}. Each caption is read from a text file of its own: 01.txt for 01.png."
        )
    return found + ([f"Not used: {_counts(by_ending)}."] if by_ending else [])


def _about_entries(listing: Listing, named: Callable[[Path], str]) -> list[str]:
    """Folders, pipes and broken links that are named like an image or a caption."""
    endings = image_endings() | set(ENDINGS)
    folders = [path for path in listing.folders if path.suffix.lower() in endings]
    others = [path for path in listing.others if path.suffix.lower() in endings]
    found = [f"Not used, because they are folders: {_some(map(named, folders))}."] if folders else []
    broken = f"Not used, because they are broken links or not regular files: {_some(map(named, others))}."
    return [*found, broken] if others else found


def _about_subfolders(listing: Listing, apart_from: Collection[Path]) -> list[str]:
    """Subfolders with images. Of many folders or files only the first are counted."""
    apart = {os.path.realpath(each) for each in (*apart_from, listing.folder)}
    until, found, others = time.monotonic() + MOST_SECONDS, list[str](), ""
    for number, each in enumerate(listing.subfolders):
        if number == MOST_FOLDERS or time.monotonic() > until:
            others = " and others"
            break
        if os.path.realpath(each) in apart:
            continue
        count, is_all = _images_below(each, until)
        if count:
            found.append(f"{each.name} ({'' if is_all else 'at least '}{counted(count, 'image')})")
    return [f"Images in subfolders are not used: {_some(found)}{others}."] if found else []


def _images_below(folder: Path, until: float) -> tuple[int, bool]:
    """The number of files that look like images, and whether all were counted."""
    looks = image_endings() | {*packages(), *RAW.split(), *OTHER_IMAGES.split()}
    images = entries = 0
    with suppress(OSError):  # a folder that may not be read
        for each in listings_below(folder):
            images += sum(path.suffix.lower() in looks for path in each.files[: MOST_FILES - entries])
            entries += 1 + len(each.files)  # the folder counts too: there may be many without files
            if entries > MOST_FILES or time.monotonic() > until:
                return images, False
    return images, True


def _is_empty(path: Path) -> bool:
    return path.stat().st_size < 64 and not path.read_bytes().strip(b"\xef\xbb\xbf \t\r\n")


def _counts(found: Counter[str]) -> str:
    """'2 .heic, 1 .heif files', most frequent first."""
    by_count = sorted(((number, ending) for ending, number in found.items() if number), key=lambda each: (-each[0], each[1]))
    return f"{_some((f'{number} {ending}' for number, ending in by_count), 20)} file{'' if found.total() == 1 else 's'}"


def _some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _no_folder(path: Path) -> str:
    """Why a dataset directory cannot be used."""
    if re.match(r"(?i)https?:/", str(path)):
        return f"{path} is a web address. Download the images and choose their folder."
    if not path.exists():
        return f"The dataset directory {path} does not exist. Choose a folder with images."
    if path.suffix.lower() in ARCHIVES.split():
        return f"{path} is an archive. Extract it and choose the folder with the images."
    if is_image(path):
        return f"{path} is a file, but a dataset is a folder. Choose the folder that it is in: {path.absolute().parent}."
    return f"{path} is a file, but not a dataset file (.toml or .json). Choose a folder with images."
