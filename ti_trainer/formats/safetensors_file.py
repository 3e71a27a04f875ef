"""Our own format: .safetensors for the WebUI, kohya, ComfyUI and diffusers, with the rest of the embedding as metadata.

These programs accept a single tensor with any name, or `clip_l` and `clip_g`, and use the file's name in prompts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors

import ti_trainer
from ti_trainer.embedding import Embedding
from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats.checks import MAX_BYTES, MAX_VECTORS, MAX_WIDTH, Array, parsed, refuse_large
from ti_trainer.formats.named_tensors import COMFYUI_T5_KEY, KOHYA_KEY, from_tensors, has_t5, refuse_others, save, to_arrays
from ti_trainer.formats.recognition import MAX_HEADER

_ARCHITECTURES = {  # as in kohya's sai_model_spec.py; the vectors do not show which SD 2.x model they were made for
    "SD 1.x": "stable-diffusion-v1/textual-inversion",
    "SDXL": "stable-diffusion-xl-v1-base/textual-inversion",
}
_NOT_INFO = {"ti_trainer", "name", "step", "sd_checkpoint", "sd_checkpoint_name"}
_ABOUT_FILE = {"format", "tool", "token", "where", "repaired"}  # added when a file is read

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "BOOL": "?"}
_DTYPES |= {"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "C64": "<c8"}
_FLOAT8 = {  # bits of the mantissa, exponent bias, first code that is not a finite number
    "F8_E4M3": (3, 7, 0x7F),
    "F8_E5M2": (2, 15, 0x7C),
    "F8_E4M3FNUZ": (3, 8, 0x80),
    "F8_E5M2FNUZ": (2, 16, 0x80),
}
_MAX_DIMENSIONS = 8
_MAX_COMMAS = 100_000  # in a metadata value
_MAX_DIGITS = 20  # of the step


def read(file: BinaryIO, size: int, stem: str, *, t5: bool = False) -> Embedding:
    """An embedding in .safetensors by this or another tool; another tool's metadata is in `info["metadata"]`."""
    header, metadata = _checked_header(file, size)
    shapes = {name: _shape(each) for name, each in header.items()}
    if not (t5 and has_t5(shapes)):
        refuse_others(shapes)
    refuse_large(size)
    file.seek(0)
    tensors = {name: array_of(each) for name, each in _deserialized(file.read(size))}
    return _embedding(from_tensors(tensors, stem, t5=t5), metadata, stem)


def read_outline(file: BinaryIO, size: int, stem: str) -> Embedding:
    """What `read` returns, but with zeros for the vectors, which are not read."""
    header, metadata = _checked_header(file, size)
    shapes = {name: _shape(each) for name, each in header.items()}
    if size > MAX_BYTES:
        refuse_others(shapes)  # a checkpoint, for instance
        refuse_large(size)
    if sum(math.prod(shape) for shape in shapes.values()) > size:  # a number has at least a byte
        message = f"its header describes more numbers than its {size} bytes hold. Copy or download it again."
        raise EmbeddingFormatError(message)
    described = tuple((name, tuple(shape), str(header[name]["dtype"])) for name, shape in shapes.items())
    found = _of_shapes(described, "learned_embeds" if stem.startswith("learned_embeds") else "")
    return _embedding(Embedding(found.name or stem, found.arrays, info=found.info), metadata, stem)


@lru_cache(256)
def _of_shapes(described: tuple[tuple[str, tuple[int, ...], str], ...], stem: str) -> Embedding:
    """What `from_tensors` makes of tensors with these names, shapes and dtypes; zeros that take no memory."""
    zeros = {name: np.broadcast_to(np.zeros((), _DTYPES.get(dtype, "<f4")), shape) for name, shape, dtype in described}
    embedding = from_tensors(zeros, stem)
    flat = {encoder: np.broadcast_to(np.float32(0), each.shape) for encoder, each in embedding.arrays.items()}
    return Embedding(embedding.name, flat, info=embedding.info)


def _checked_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The descriptions of the tensors by name, and the metadata."""
    header = read_header(file, size)
    metadata = header.pop("__metadata__", {})
    return header, metadata


def _embedding(embedding: Embedding, metadata: dict[str, Any], stem: str) -> Embedding:
    """The embedding with what the metadata say about it."""
    if "ti_trainer" not in metadata:
        foreign = {"metadata": metadata} if set(metadata) - {"format"} else {}
        return Embedding(embedding.name, embedding.arrays, info=embedding.info | foreign)
    step = metadata.get("step", "")
    return Embedding(
        metadata.get("name") or stem,
        embedding.arrays,
        int(step) if step.isdecimal() and len(step) <= _MAX_DIGITS else 0,
        metadata.get("sd_checkpoint_name"),
        metadata.get("sd_checkpoint"),
        {key: _value(text) for key, text in metadata.items() if key not in _NOT_INFO and not key.startswith("modelspec.")}
        | {"format": "safetensors", "tool": f"TI Trainer {metadata['ti_trainer']}"},
    )


def read_header(file: BinaryIO, size: int) -> dict[str, Any]:
    """The descriptions of the tensors, and the metadata; EmbeddingFormatError if the header is too large or damaged."""
    length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER, size - 8):
        message = f"its header has {length} bytes, expected at most {min(MAX_HEADER, size - 8)}. Choose an embedding."
        raise EmbeddingFormatError(message)
    header = parsed(file.read(length))
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        message = "its header does not describe tensors. Choose an embedding."
        raise EmbeddingFormatError(message)
    return header


def _shape(described: Any) -> list[int]:
    """The shape of a tensor by its entry in the header; EmbeddingFormatError if it cannot be read."""
    shape, dtype = described["shape"], str(described["dtype"])
    if len(shape) > _MAX_DIMENSIONS or not all(type(each) is int and 0 <= each < 2**40 for each in shape):
        message = f"it holds a tensor of {len(shape)} dimensions. Choose an embedding."
        raise EmbeddingFormatError(message)
    if dtype not in _DTYPES and dtype not in _FLOAT8 and dtype != "BF16":
        message = f"its numbers have the type {dtype[:20]!r}, which is not supported. Get it in float16 or float32."
        raise EmbeddingFormatError(message)
    return list(shape)


def _deserialized(content: bytes) -> list[tuple[str, Mapping[str, Any]]]:
    """Name, dtype, shape and bytes of each tensor; SafetensorError if the file is damaged."""
    found: list[tuple[str, Mapping[str, Any]]] = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    return found


def array_of(described: Mapping[str, Any]) -> Array:
    """A tensor's numbers; bfloat16 and 8-bit floats, which NumPy does not have, as float32."""
    dtype, data, shape = described["dtype"], described["data"], described["shape"]
    numbers: Array
    if math.prod(shape) > MAX_VECTORS * MAX_WIDTH:
        numbers = np.broadcast_to(np.float32(0), shape)  # `checked` refuses it by its shape: do not spend memory on it
    elif dtype == "BF16":
        numbers = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif dtype in _FLOAT8:
        numbers = _float8_values(dtype)[np.frombuffer(data, np.uint8)]
    else:
        numbers = np.frombuffer(data, _DTYPES[dtype])
    values: np.ndarray[Any, Any] = numbers.reshape(shape)
    return values


def _float8_values(dtype: str) -> Array:
    """(256,) float32: the value of each code, NaN for infinite ones, too (arXiv:2209.05433; FNUZ: arXiv:2206.02915)."""
    mantissa_bits, bias, first_special = _FLOAT8[dtype]
    codes = np.arange(128)
    exponent, mantissa = codes >> mantissa_bits, codes & ((1 << mantissa_bits) - 1)
    normal = exponent > 0
    fraction = (mantissa / (1 << mantissa_bits)) + normal
    values = np.ldexp(fraction, np.where(normal, exponent, 1) - bias)
    values[first_special:] = np.nan
    negative = -values
    if dtype.endswith("FNUZ"):
        negative[0] = np.nan  # in place of a negative zero
    both: Array = np.concatenate([values, negative]).astype(np.float32)
    return both


def write(embedding: Embedding, path: Path, dtype: str = "fp32") -> None:
    """Vectors, with name, step, checkpoint and info as metadata, and ModelSpec 1.0.1 keys where they are known."""
    metadata = {key: _text(value) for key, value in embedding.info.items() if key not in _ABOUT_FILE}
    metadata |= {"ti_trainer": ti_trainer.__version__, "name": embedding.name, "step": str(embedding.step)}
    if embedding.checkpoint is not None:
        metadata["sd_checkpoint_name"] = embedding.checkpoint
    if embedding.checkpoint_hash is not None:
        metadata["sd_checkpoint"] = embedding.checkpoint_hash
    if embedding.family in _ARCHITECTURES:
        metadata |= {
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": _ARCHITECTURES[embedding.family],
            "modelspec.title": embedding.name,
        }
    save(to_arrays(embedding, KOHYA_KEY, COMFYUI_T5_KEY), path, metadata, dtype)


def _text(value: Any) -> str:
    """JSON, or the text itself where reading it as JSON returns the same text."""
    return value if isinstance(value, str) and _value(value) is value else json.dumps(value, default=str)


def _value(text: str) -> Any:
    """The value of a JSON text, or else the text; checked again, since escaped brackets are not counted in the header."""
    try:
        return parsed(text.encode(), _MAX_COMMAS)
    except (ValueError, RecursionError, EmbeddingFormatError):
        return text
