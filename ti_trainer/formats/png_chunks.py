"""The chunks of a PNG, read within limits: an image library would decompress every text in it, whatever its size."""

from __future__ import annotations

import zlib
from typing import NamedTuple

from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats.recognition import PNG

MAX_CHUNKS = 20_000  # a file of 64 MB in the smallest common chunks has 8000
_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
TEXTS = {b"tEXt", b"zTXt", b"iTXt"}


class Chunk(NamedTuple):
    """`whole` has its length, kind and checksum with it."""

    kind: bytes
    data: memoryview
    whole: memoryview


Chunks = list[Chunk]


def chunks_of(content: bytes) -> Chunks:
    """As far as the file goes; EmbeddingFormatError if there are too many to be an image's."""
    view, position = memoryview(content), len(PNG)
    found: Chunks = []
    while position + 8 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        kind = content[position + 4 : position + 8]
        end = position + length + 12
        found.append(Chunk(kind, view[position + 8 : end - 4], view[position:end]))
        position = end
        if kind == b"IEND":
            break
        if len(found) > MAX_CHUNKS:
            message = f"it is a PNG of more than {MAX_CHUNKS} chunks. Choose an embedding."
            raise EmbeddingFormatError(message)
    return found


def size_of(chunks: Chunks) -> tuple[int, int]:
    """Width and height in pixels; (0, 0) if it does not say."""
    header = bytes(chunks[0].data) if chunks and chunks[0].kind == b"IHDR" else b""
    return int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")


def text_of(chunks: Chunks, keyword: str, max_length: int) -> bytes | None:
    """The text under a keyword, compressed or not; EmbeddingFormatError if it is longer than `max_length`."""
    start = keyword.encode() + b"\0"
    for kind, data, _ in chunks:
        if kind not in TEXTS or bytes(data[: len(start)]) != start:
            continue
        rest: memoryview | bytes = data[len(start) :]
        packed = kind == b"zTXt"
        if packed:
            rest = rest[1:]  # the method: there is only one
        elif kind == b"iTXt":
            packed = bytes(rest[:1]) == b"\1"
            _, _, rest = bytes(rest[2:]).split(b"\0", 2) if len(rest) <= max_length else (b"", b"", rest)
        text = zlib.decompressobj().decompress(rest, max_length + 1) if packed else rest
        if len(text) > max_length:
            message = f"its text has more than {max_length} characters. Choose an embedding."
            raise EmbeddingFormatError(message)
        return bytes(text)
    return None


def pixels_only(chunks: Chunks) -> bytes:
    """The same image without texts, profiles, frames and further headers, whose size was not checked."""
    kept = [chunk for number, chunk in enumerate(chunks) if chunk.kind in _PIXELS and (number == 0 or chunk.kind != b"IHDR")]
    return b"".join([PNG, *(chunk.whole for chunk in kept)])
