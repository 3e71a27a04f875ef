"""Detect files with several frames or pages from their first bytes, which is much faster than opening them."""

from __future__ import annotations

import struct
from pathlib import Path


def has_frames(path: Path) -> bool:
    """Whether a file is animated or has several pages. True for every .gif; False if it is unknown."""
    ending = path.suffix.lower()
    if ending == ".gif":
        return True
    if ending not in (".webp", ".tif", ".tiff", ".png", ".apng"):
        return False
    try:
        with path.open("rb") as file:
            begin = file.read(256)
            if begin[:4] in (b"II*\0", b"MM\0*"):
                order = "<" if begin[:2] == b"II" else ">"
                file.seek(struct.unpack(f"{order}I", begin[4:8])[0])
                file.seek(12 * struct.unpack(f"{order}H", file.read(2))[0], 1)  # over the tags of the first page
                return struct.unpack(f"{order}I", file.read(4))[0] != 0
    except (OSError, struct.error):  # damaged, which is reported when it is opened
        return False
    if begin[8:16] == b"WEBPVP8X":
        return bool(begin[20] & 2) if len(begin) > 20 else False
    return begin.startswith(b"\x89PNG") and b"acTL" in begin.partition(b"IDAT")[0]
