"""Our own format: .safetensors for the WebUI, kohya, ComfyUI and diffusers, with the rest of the embedding as metadata.

They take a single tensor of any name, or `clip_l` with `clip_g`, and go by the file's name. Knows nothing of pickles.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch

import ti_trainer
from ti_trainer.embedding import Embedding
from ti_trainer.formats.named_tensors import KOHYA_KEY, from_tensors, save, to_tensors

_ARCHITECTURES = {  # as kohya's sai_model_spec.py; which SD 2.x an embedding was made for, its vectors do not tell
    "SD 1.x": "stable-diffusion-v1/textual-inversion",
    "SDXL": "stable-diffusion-xl-v1-base/textual-inversion",
}
_NOT_INFO = {"ti_trainer", "name", "step", "sd_checkpoint", "sd_checkpoint_name"}
_ABOUT_FILE = {"format", "tool", "token", "where"}  # said by whoever reads


def read(content: bytes, stem: str) -> Embedding:
    """Any embedding in .safetensors, by this or another tool; another's metadata is in `info["metadata"]`."""
    embedding = from_tensors(safetensors.torch.load(content), stem)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata: dict[str, str] = header.get("__metadata__", {})
    if "ti_trainer" not in metadata:
        foreign = {"metadata": metadata} if set(metadata) - {"format"} else {}
        return Embedding(embedding.name, embedding.vectors, info=embedding.info | foreign)
    step = metadata.get("step", "")
    return Embedding(
        metadata.get("name") or stem,
        embedding.vectors,
        int(step) if step.isdecimal() else 0,
        metadata.get("sd_checkpoint_name"),
        metadata.get("sd_checkpoint"),
        {key: _value(text) for key, text in metadata.items() if key not in _NOT_INFO and not key.startswith("modelspec.")}
        | {"format": "safetensors", "tool": f"TI Trainer {metadata['ti_trainer']}"},
    )


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
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
