"""Cards: images that contain an embedding, which the WebUI reads and users share.

The WebUI's dict is stored twice as JSON: in base64 in the PNG text chunk `sd-ti-embedding`, and compressed with zlib in the
pixels. There, the low half of each byte is in a block left of the image and the high half in a block right of it, with a
black column between image and block. The halves are the lower four bits of the pixels, XORed with a fixed sequence so that
no column of a block is black; the upper four bits hold a pattern.
Source: AUTOMATIC1111 v1.10.1, modules/textual_inversion/image_embedding.py.

H, W height and width of an image or block, V vectors, D width of a text encoder's token embeddings.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ti_trainer import files
from ti_trainer.embedding import Embedding, negative_name
from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats import webui
from ti_trainer.formats.card_drawing import captioned
from ti_trainer.formats.checks import Array, Vectors, checked, parsed, writable
from ti_trainer.formats.png_chunks import MAX_CHUNKS, TEXTS, chunks_of, pixels_only, size_of, text_of
from ti_trainer.formats.recognition import PNG, webp_size

Bytes = NDArray[np.uint8]

_CHUNK = "sd-ti-embedding"
_NEGATIVE = "ti-trainer-negative"  # the chunk of the negative; the WebUI does not read it
_MAX_JSON = 8 * 2**20  # characters: 22 a number
_MAX_NUMBERS = _MAX_JSON // 16
_MAX_PIXELS = 4 * 2**20


def read(content: bytes, kind: str, stem: str) -> Embedding:
    """The embedding in the text chunk or else in the pixels of a PNG or WebP (`kind`); else EmbeddingFormatError."""
    chunks = chunks_of(content) if kind == "png" else []
    encoded = text_of(chunks, _CHUNK, _MAX_JSON * 4 // 3)
    if encoded is not None:
        return _from_json(base64.b64decode(encoded), stem, "text chunk")
    text = b""
    if kind != "jpeg":  # JPEG does not preserve pixels
        width, height = size_of(chunks) if kind == "png" else webp_size(content)
        if width * height > _MAX_PIXELS:
            message = f"it is an image of {width} x {height} pixels, too large for a card. Choose an embedding."
            raise EmbeddingFormatError(message)
        hidden = _hidden(_pixels(pixels_only(chunks) if chunks else content, kind))
        text = _unpacked(hidden) if hidden else b""
    if not text:
        message = (
            f"no embedding can be found in this {kind.upper()} image. If it is a card, it was re-encoded or resized on "
            "its way, as many websites do, and what was in its pixels is lost. Get the original PNG, .safetensors or .pt."
        )
        raise EmbeddingFormatError(message)
    return _from_json(text, stem, "pixels")


def is_marked(path: Path) -> bool:
    """Whether a PNG has the text of a card, by the heads of its chunks: its pixels are not read."""
    start = _CHUNK.encode() + b"\0"
    try:
        with path.open("rb") as file:
            if file.read(len(PNG)) != PNG:
                return False
            for _ in range(MAX_CHUNKS):
                head = file.read(8)
                if len(head) < 8 or head[4:] == b"IEND":
                    return False
                length = int.from_bytes(head[:4], "big")
                taken = file.read(min(length, len(start))) if head[4:] in TEXTS else b""
                if taken == start:
                    return True
                file.seek(length - len(taken) + 4, 1)
    except OSError:  # it is gone, or cannot be read
        return False
    return False


def read_negative(content: bytes, stem: str) -> Embedding | None:
    """The negative embedding that `write_card` stored in a PNG; None if there is none."""
    encoded = text_of(chunks_of(content), _NEGATIVE, _MAX_JSON * 4 // 3)
    return None if encoded is None else _from_json(base64.b64decode(encoded), negative_name(stem), "text chunk")


def _pixels(content: bytes, kind: str) -> Bytes:
    """(H, W, 3), whatever its mode."""
    with Image.open(BytesIO(content), formats=(kind.upper(),)) as image:
        return np.asarray(image.convert("RGB"))


def make_card(image: Image.Image, embedding: Embedding, title: str | None = None) -> Image.Image:
    """The image, captioned (by default with the name) and at least 512 pixels a side, between two blocks of data."""
    footers = (
        embedding.checkpoint or "",
        f"[{embedding.checkpoint_hash}]" if embedding.checkpoint_hash else "",
        f"{embedding.num_vectors}v {embedding.step}s",
    )
    middle = np.asarray(captioned(image, embedding.name if title is None else title, footers))  # (H, W, 3)
    height = len(middle)
    packed = np.frombuffer(zlib.compress(_to_json(embedding), 9), np.uint8)  # (bytes,)
    columns = (len(packed) // height + 1) // 3 + 1
    padded = np.resize(packed, (height, columns, 3))  # (H, columns, 3), begun anew at the end: zlib knows where it ends
    shades = _shades(next(iter(embedding.arrays.values()))[0])
    gap = np.zeros((height, 1, 3), np.uint8)
    noise = _noise(padded.shape)
    low = padded & 15 ^ noise | _circles(height, columns, shades)
    high = padded >> 4 ^ noise | _circles(height, columns, shades[::-1])
    return Image.fromarray(np.concatenate([low, gap, middle, gap, high], axis=1))


def write(embedding: Embedding, path: Path, dtype: str = "fp32") -> None:
    """A card without an image. Its numbers are text, so it has no other dtype."""
    write_card(Image.new("RGB", (512, 512), (52, 58, 72)), embedding, path)


def write_card(
    image: Image.Image, embedding: Embedding, path: Path, title: str | None = None, negative: Embedding | None = None
) -> None:
    """Write the card as PNG or, by the extension of `path`, as lossless WebP, which has no text chunk.

    A PNG can also store the negative embedding, for `read_negative`. EmbeddingFormatError if numbers are not finite.
    """
    embedding = writable(embedding)
    card = make_card(image, embedding, title)
    with files.atomic(path) as new:
        if path.suffix.lower() == ".webp":
            card.save(new, "WEBP", lossless=True)
        else:
            text = PngInfo()
            text.add_text(_CHUNK, base64.b64encode(_to_json(embedding)).decode())
            if negative is not None:
                text.add_text(_NEGATIVE, base64.b64encode(_to_json(writable(negative))).decode())
            card.save(new, "PNG", pnginfo=text)


def _to_json(embedding: Embedding) -> bytes:
    """The card's JSON; EmbeddingFormatError if it would be too long to be read."""
    text = json.dumps(_data_of(embedding), default=_array_to_json).encode()
    if len(text) > _MAX_JSON:
        numbers = sum(each.size for each in embedding.arrays.values())
        message = f"The embedding {embedding.name!r} has too many numbers for a card, {numbers}. Write it as .safetensors."
        raise EmbeddingFormatError(message)
    return text


def _data_of(embedding: Embedding) -> dict[str, Any]:
    """The WebUI's dict; for SDXL two tensors, as the WebUI expects, with the other data in the first one."""
    if len(embedding.widths) == 1:
        return webui.to_dict(embedding, embedding.arrays)
    data: dict[str, Any] = {encoder: _array_to_json(each) for encoder, each in embedding.arrays.items()}
    data["clip_l"] |= {
        "name": embedding.name,
        "step": embedding.step,
        "sd_checkpoint": embedding.checkpoint_hash,
        "sd_checkpoint_name": embedding.checkpoint,
    }
    return data


def _from_json(text: bytes, stem: str, where: str) -> Embedding:
    data = parsed(text, _MAX_NUMBERS)
    about = {"format": "card", "where": where}
    if "string_to_param" in data:
        data["string_to_param"] = {term: _array_from_json(value) for term, value in data["string_to_param"].items()}
        embedding = webui.from_dict(data, stem)
        return replace(embedding, vectors=embedding.arrays, info=embedding.info | about)
    vectors = {encoder: checked(_array_from_json(data[encoder])) for encoder in ("clip_l", "clip_g")}
    return Embedding(vectors=vectors, info=about, **webui.provenance(data["clip_l"], stem))


def _array_to_json(vectors: Vectors) -> dict[str, Any]:
    return {"TORCHTENSOR": vectors.tolist()}


def _array_from_json(value: dict[str, Any]) -> Array:
    numbers = np.array(value["TORCHTENSOR"])
    if numbers.dtype.kind not in "iuf":
        message = "its vectors are not numbers. Choose an embedding."
        raise EmbeddingFormatError(message)
    return numbers.astype(np.float64)


def _hidden(pixels: Bytes) -> bytes | None:
    """The data in the two blocks of a card's (H, W, 3) pixels, or None if it does not have two blocks."""
    lit = np.all(pixels > 0, axis=2)  # (H, W)
    rows, columns = np.flatnonzero(np.any(lit, axis=1)), np.flatnonzero(np.any(lit, axis=0))
    if len(rows) == 0:
        return None
    halves = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & np.uint8(15)  # (H, W, 3) without black borders
    gaps = np.flatnonzero(~np.any(halves, axis=(0, 2)))
    if len(gaps) < 2:
        return None
    low, high = halves[:, : gaps[0]], halves[:, gaps[-1] + 1 :]
    if low.shape != high.shape:
        return None
    low, high = low.reshape(-1)[:_MAX_JSON], high.reshape(-1)[:_MAX_JSON]  # compressed data is shorter than the JSON
    noise = _noise(low.shape)
    hidden: Bytes = low ^ noise | (high ^ noise) << 4
    return hidden.tobytes()


def _unpacked(hidden: bytes) -> bytes:
    """The text that is compressed at the start of `hidden`, b"" if damaged; EmbeddingFormatError if it is too long."""
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(hidden, _MAX_JSON)
    except zlib.error:
        return b""
    if unpacking.unconsumed_tail and not unpacking.eof:
        message = f"unpacked it would be longer than {_MAX_JSON} characters. Choose an embedding."
        raise EmbeddingFormatError(message)
    return text if unpacking.eof else b""


def _noise(shape: tuple[int, ...]) -> Bytes:
    """The lower four bits of `seed % 255` for each seed = 1664525 seed + 1013904223 mod 2^32.

    Starting from seed 0, so that the n-th seed is a geometric series of n terms.
    """
    seeds = np.full(shape, 1664525, np.uint32).reshape(-1)
    seeds[:1] = 1
    np.cumprod(seeds, dtype=np.uint32, out=seeds)  # in place, since a malicious image may be large
    np.cumsum(seeds, dtype=np.uint32, out=seeds)
    seeds *= np.uint32(1013904223)
    seeds %= np.uint32(255)
    seeds &= np.uint32(15)
    noise: Bytes = seeds.astype(np.uint8)
    return noise.reshape(shape)


def _shades(vector: Vectors) -> Bytes:
    """(D,) -> (D,) shades of gray: the absolute values, the largest one white."""
    sizes = np.abs(vector)
    shades: Bytes = (sizes / max(sizes.max(), np.float32(1e-12)) * 255).astype(np.uint8)
    return shades


def _circles(height: int, width: int, shades: Bytes) -> Bytes:
    """(height, width, 1): discs in the upper four bits, in staggered rows of eight pixels, shaded column by column."""
    y, x = np.mgrid[6 : height + 6, 6 : width + 6]  # (height, width)
    row = y // 8
    x = x - np.where(row % 2 == 0, 4, 0)
    disc = (y % 8 - 3) ** 2 + (x % 8 - 3) ** 2 <= 9
    shade = shades[(x // 8 * (height // 8 + 2) + row) % len(shades)]
    return np.where(disc, shade & 0xF0, 0).astype(np.uint8)[..., None]
