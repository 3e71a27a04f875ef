"""Read the size of a JPEG XL file from its header, because the plug-in decodes the whole file when it opens it.

Source: ISO/IEC 18181-1, SizeHeader; 18181-2, boxes.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

CODESTREAM, CONTAINER = b"\xff\x0a", b"\x00\x00\x00\x0cJXL \x0d\x0a\x87\x0a"
_WIDTHS = (9, 13, 18, 30)  # bits of a side, by a selector
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height, from 1 on
_MOST_BOXES = 100


def jxl_size(path: Path) -> tuple[int, int] | None:
    """(width, height) in px; None if it is no JPEG XL, or damaged."""
    with path.open("rb") as file:
        start = file.read(len(CONTAINER))
        if start == CONTAINER:
            file.seek(0)
            start = _codestream(file)
        else:
            start += file.read(16)
    return _size(start) if start.startswith(CODESTREAM) and len(start) > 12 else None


def _codestream(file: BinaryIO) -> bytes:
    """The first bytes of what is in the container's first box with pixels."""
    for _ in range(_MOST_BOXES):
        at, head = file.tell(), file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        if kind in (b"jxlc", b"jxlp"):
            return file.read(32)[4 if kind == b"jxlp" else 0 :]
        if length < 8 or len(head) < 8:
            return b""
        file.seek(at + length)
    return b""


def _size(start: bytes) -> tuple[int, int]:
    bits, at = int.from_bytes(start[2:], "little"), 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return bits >> (at - count) & ((1 << count) - 1)

    small = read(1)

    def side() -> int:
        return 8 * (read(5) + 1) if small else read(_WIDTHS[read(2)]) + 1

    height = side()
    ratio = read(3)
    return (height * _RATIOS[ratio - 1][0] // _RATIOS[ratio - 1][1] if ratio else side()), height
