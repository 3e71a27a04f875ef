"""Our own format: .safetensors for the WebUI, kohya, ComfyUI and diffusers, with the rest of the embedding as metadata.

They take a single tensor of any name, or `clip_l` with `clip_g`, and go by the file's name. Knows nothing of pickles.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch

import ti_trainer
from ti_trainer.embedding import Embedding
from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats.checks import parsed, refuse_large
from ti_trainer.formats.named_tensors import KOHYA_KEY, from_tensors, refuse_others, save, to_tensors
from ti_trainer.formats.recognition import MAX_HEADER

_ARCHITECTURES = {  # as kohya's sai_model_spec.py; which SD 2.x an embedding was made for, its vectors do not tell
    "SD 1.x": "stable-diffusion-v1/textual-inversion",
    "SDXL": "stable-diffusion-xl-v1-base/textual-inversion",
}
_NOT_INFO = {"ti_trainer", "name", "step", "sd_checkpoint", "sd_checkpoint_name"}
_ABOUT_FILE = {"format", "tool", "token", "where", "repaired"}  # said by whoever reads

_FLOATS = {"F64", "F32", "F16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}
_MAX_DIMENSIONS = 8
_MAX_COMMAS = 100_000  # in a note
_MAX_DIGITS = 20  # of the step


def read(file: BinaryIO, size: int, stem: str) -> Embedding:
    """Any embedding in .safetensors, by this or another tool; another's metadata is in `info["metadata"]`."""
    header = _header(file, size)
    metadata = header.pop("__metadata__", {})
    refuse_others({name: _shape(each) for name, each in header.items()})
    refuse_large(size)
    file.seek(0)
    embedding = from_tensors(safetensors.torch.load(file.read(size)), stem)
    if "ti_trainer" not in metadata:
        foreign = {"metadata": metadata} if set(metadata) - {"format"} else {}
        return Embedding(embedding.name, embedding.vectors, info=embedding.info | foreign)
    step = metadata.get("step", "")
    return Embedding(
        metadata.get("name") or stem,
        embedding.vectors,
        int(step) if step.isdecimal() and len(step) <= _MAX_DIGITS else 0,
        metadata.get("sd_checkpoint_name"),
        metadata.get("sd_checkpoint"),
        {key: _value(text) for key, text in metadata.items() if key not in _NOT_INFO and not key.startswith("modelspec.")}
        | {"format": "safetensors", "tool": f"TI Trainer {metadata['ti_trainer']}"},
    )


def _header(file: BinaryIO, size: int) -> dict[str, Any]:
    """What the file says of its tensors; EmbeddingFormatError if that is too much for any file, or is damaged."""
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
    """Of a tensor in the header; EmbeddingFormatError for one that cannot be read, however it is damaged."""
    shape, dtype = described["shape"], str(described["dtype"])
    if len(shape) > _MAX_DIMENSIONS or not all(type(each) is int and 0 <= each < 2**40 for each in shape):
        message = f"it holds a tensor of {len(shape)} dimensions. Choose an embedding."
        raise EmbeddingFormatError(message)
    if dtype[:1] == "F" and dtype not in _FLOATS:
        message = f"its numbers are of the type {dtype[:20]!r}, which cannot be read here. Get it in float16 or float32."
        raise EmbeddingFormatError(message)
    return list(shape)


def write(embedding: Embedding, path: Path) -> None:
    """Vectors, and name, step, checkpoint and info as metadata; ModelSpec 1.0.1 keys where they can be known."""
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
    save(to_tensors(embedding, KOHYA_KEY), path, metadata)


def _text(value: Any) -> str:
    """JSON, or plain text where JSON could not be meant."""
    return value if isinstance(value, str) and _value(value) is value else json.dumps(value, default=str)


def _value(text: str) -> Any:
    """What JSON says, within bounds: brackets may be written so that they could not be counted in the header."""
    try:
        return parsed(text.encode(), _MAX_COMMAS)
    except (ValueError, RecursionError, EmbeddingFormatError):
        return text
