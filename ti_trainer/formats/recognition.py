"""Detect the format of a file by its structure, not by its extension and not by single bytes.

The length at the start of a .safetensors file can look like the first bytes of another format: 0x80 is the first byte of a
pickle, and "PK" are those of a zip archive.
"""

from __future__ import annotations

import json
from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
HEAD = 4096  # bytes that are needed
MAX_HEADER = 8 * 2**20  # bytes of a .safetensors header: 300 KB for SDXL, more for LoRAs with metadata

_LFS = b"version https://git-lfs.github.com/spec/"
_PACKED = {
    b"7z\xbc\xaf'\x1c": "a 7-Zip archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\x1f\x8b\x08": "a gzip archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"\xfd7zXZ\x00": "an xz archive",
}
_OTHERS = {
    b"GGUF": "a quantized model (GGUF)",
    b"GIF8": "a GIF image",
    b"BM": "a BMP image",
    b"\x93NUMPY": "a numpy array (.npy)",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"%PDF-": "a PDF document",
    b"\x7fELF": "a program",
    b"MZ": "a program",
}


def head_of(path: Path) -> tuple[bytes, int]:
    """The first bytes of a file, and its size."""
    with path.open("rb") as file:
        return file.read(HEAD), path.stat().st_size


def format_of(head: bytes, size: int) -> str | None:
    """One of safetensors, zip, pickle, png, webp and jpeg; None for anything else."""
    length = int.from_bytes(head[:8], "little")
    if 2 <= length <= size - 8 and head[8:9] == b"{":
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    if head.startswith(PNG):
        return "png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return "jpeg" if head.startswith(JPEG) else None


def stranger(head: bytes, size: int) -> str | None:
    """What another file is and what to do about it, as the rest of a sentence after "it"; None if unknown."""
    if size == 0:
        return "is empty: the download or copy failed. Download or copy it again."
    if _is_cut_in_header(head, size):
        return "is a .safetensors file that was cut short: the download or copy failed. Download or copy it again."
    if not head.strip(b"\0"):
        return "begins with zeros only: the download was interrupted. Download it again."
    for signature, what in _PACKED.items():
        if head.startswith(signature):
            return f"is {what}: unpack it, and choose the file inside."
    if head[4:12] in (b"ftypavif", b"ftypheic", b"ftypmif1"):
        return "is an AVIF or HEIC image, which cannot carry an embedding. Choose another file."
    for signature, what in _OTHERS.items():
        if head.startswith(signature):
            return f"is {what}. Choose another file."
    text = head.decode("utf-16", "ignore").encode() if head[:2] in (b"\xff\xfe", b"\xfe\xff") else head
    return _stranger_of_text(text.removeprefix(b"\xef\xbb\xbf").strip(), size)


def _is_cut_in_header(head: bytes, size: int) -> bool:
    """Whether it is a .safetensors file that ends within its header."""
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and size - 8 < length <= MAX_HEADER


def _stranger_of_text(text: bytes, size: int) -> str | None:
    if text.startswith(_LFS):
        return "is a Git LFS pointer, not the file itself. Download the file itself (git lfs pull)."
    if _is_markup(text):
        return "is a web page, not the file itself. Download the file itself; you may have to log in first."
    shown = " ".join(text[:80].decode("utf-8", "replace").split())
    if _is_json(text, size):
        return (
            f"is the response of a website ({shown}), not the file itself. Download it again; you may have to log in first."
        )
    if text.isascii() and shown.isprintable():
        return f"is text ({shown}), not the file itself. Download it again; you may have to log in first."
    return None


def webp_size(content: bytes) -> tuple[int, int]:
    """Width and height in pixels from the header, of the canvas or of the only frame; (0, 0) if there is none."""
    kind, data = content[12:16], content[20:30]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[4:7], "little"), 1 + int.from_bytes(data[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(data[6:8], "little") & 0x3FFF, int.from_bytes(data[8:10], "little") & 0x3FFF


def _is_markup(text: bytes) -> bool:
    start = text[:200].lower()
    return start.startswith((b"<!doctype", b"<html", b"<head", b"<body", b"<meta", b"<script", b"<?xml", b"<!--", b"<error"))


def _is_json(text: bytes, size: int) -> bool:
    """Whether it is an object or list, or for a large file, whether it begins like one."""
    if not text.startswith((b"{", b"[")):
        return False
    if size <= HEAD:
        try:
            return isinstance(json.loads(text), dict | list)
        except (ValueError, RecursionError):
            return False
    return text[1:].lstrip()[:1] in (b'"', b"{", b"[") and text.isascii() and b"\0" not in text
