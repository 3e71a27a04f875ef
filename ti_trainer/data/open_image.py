"""Open image files with one-line errors, and flatten transparency. Needs no torch."""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ti_trainer.data.image_formats import how_to_read, readable_formats
from ti_trainer.data.jxl_header import jxl_size
from ti_trainer.data.upright import eight_bit, has_alpha
from ti_trainer.errors import DatasetError

LARGEST_PX = 178_956_970  # as Pillow: twice what fills a quarter of 1 GiB; a host may have switched Pillow's own limit off
_DAMAGE = (SyntaxError, EOFError, struct.error, zlib.error)  # what Pillow's decoders raise besides OSError


@contextmanager
def opened_image(path: Path) -> Iterator[Image.Image]:
    """The image of a file, at its first frame; what it is comes from its content, whatever its name says.

    DatasetError, in one line without the path, if it is not an image, damaged, too large, or not a regular file. That goes
    for the pixels, too, if they are read within the block.
    """
    with _opened(path) as opened:
        _check_size(*opened.size)
        if opened.format == "JXL" and not getattr(opened, "jpeg", False):
            opened.info.pop("exif", None)  # the decoder has turned it already; only in a repacked JPEG does EXIF say how
        try:
            yield opened
        except _DAMAGE as error:
            raise _damaged(error) from error
        except OSError as error:
            if error.errno is not None:  # as of a disk
                raise
            raise _damaged(error) from error


def on_white(image: Image.Image) -> Image.Image:
    """RGB; what is transparent is white, whatever colours lie hidden there."""
    if not has_alpha(image):
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def on_black(image: Image.Image) -> Image.Image:
    """Grey, for masks: what is transparent marks nothing."""
    if not has_alpha(image):
        return image.convert("RGB").convert("L")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB").convert("L")


def is_transparent(image: Image.Image) -> bool:
    """Whether any of it is. Its pixels are read only if its header says that it may be."""
    if not has_alpha(image):
        return False
    image = eight_bit(image)
    alpha = (image if image.mode in ("RGBA", "LA") else image.convert("RGBA")).getchannel("A")
    return bool(np.asarray(alpha).min() < 255)


def _opened(path: Path) -> Image.Image:
    try:
        is_regular = stat.S_ISREG(path.stat().st_mode)
        if is_regular:  # a pipe would keep us waiting
            if "JXL" in readable_formats() and (size := jxl_size(path)):
                _check_size(*size)
            return Image.open(path, formats=readable_formats())
    except DatasetError:
        raise
    except Image.DecompressionBombError as error:
        count = next((int(word) for word in str(error).split("(")[-1].split() if word.isdecimal()), 0)
        raise _too_large(f"{count:,} px" if count else "more") from error
    except UnidentifiedImageError as error:
        raise DatasetError(_what_it_is(path)) from error
    except OSError as error:
        message = f"it cannot be opened: {error.strerror}" if error.strerror else f"it is damaged: {_one_line(error)}"
        raise DatasetError(message) from error
    except Exception as error:  # plug-ins have errors of their own
        raise _damaged(error) from error
    message = "it is a folder, a pipe or a device, and not an image file"
    raise DatasetError(message)


def _what_it_is(path: Path) -> str:
    """Of a file that no decoder knows."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start.strip(b"\0"):
        return "it is empty" if not start else "it is damaged: it begins with nothing but zeros"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, and not the image itself: fetch that with `git lfs pull`"
    if b"<html" in start.lower() or start.lstrip().lower().startswith(b"<!doctype html"):
        return "it is a web page, and not an image: download the image itself"
    brand = start[8:12] if start[4:8] == b"ftyp" else b""
    if brand in (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"):
        return how_to_read(".heic") or "it is damaged"
    if brand in (b"avif", b"avis"):
        return how_to_read(".avif") or "it is damaged"
    if start[:2] == b"\xff\x0a" or start[4:8] == b"JXL ":
        return how_to_read(".jxl") or "it is damaged"
    return "it is a video, and not an image" if brand else "it is not an image, or damaged"


def _damaged(error: BaseException) -> DatasetError:
    return DatasetError(f"it is damaged: {_one_line(error)}")


def _check_size(width: int, height: int) -> None:
    if width * height > LARGEST_PX:
        found = f"{width} x {height} px"
        raise _too_large(found)


def _too_large(found: str) -> DatasetError:
    message = f"it is too large: found {found}, expected at most {LARGEST_PX:,} px in all; save it smaller"
    return DatasetError(message)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
