"""The WebUI's own dict, in a .pt, .bin or card, with the optimizer's state beside it; rinongal's is its ancestor.

Facts from AUTOMATIC1111 v1.10.1, modules/textual_inversion/textual_inversion.py. Knows nothing of pickles or images.

V vectors, D width of a text encoder's token embeddings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ti_trainer.embedding import Embedding
from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats import torch_pickle
from ti_trainer.formats.checks import by_encoder, explained, refuse_large

_TOKEN_ID = 265  # of "*", which stands for the embedding and is looked at by nobody
_SHORT_HASH = 10  # characters of the checkpoint's SHA-256


def from_dict(data: dict[str, Any], stem: str) -> Embedding:
    """The embedding in the WebUI's dict or in rinongal's; EmbeddingFormatError if there are several."""
    terms = data["string_to_param"]
    terms = terms.get("_parameters", terms)  # torch.nn.ParameterDict
    if len(terms) != 1:
        names = ", ".join(str(term)[:40] for term in list(terms)[:5])
        message = f"it holds {len(terms)} terms ({names}); expected one. Choose a file with one embedding."
        raise EmbeddingFormatError(message)
    tool = "AUTOMATIC1111 WebUI" if "name" in data else "rinongal/textual_inversion"
    info = {"format": "webui" if "name" in data else "rinongal", "tool": tool}
    return Embedding(vectors=by_encoder(next(iter(terms.values()))), info=info, **provenance(data, stem))


def provenance(data: dict[str, Any], stem: str) -> dict[str, Any]:
    """Name (the file's, if there is none), step and checkpoint in the WebUI's words, as arguments of Embedding."""
    name, step = data.get("name"), data.get("step")
    checkpoint, checkpoint_hash = data.get("sd_checkpoint_name"), data.get("sd_checkpoint")
    return {
        "name": name if isinstance(name, str) and name not in ("", "*") else stem,
        "step": step if isinstance(step, int) else 0,
        "checkpoint": checkpoint if isinstance(checkpoint, str) else None,
        "checkpoint_hash": checkpoint_hash if isinstance(checkpoint_hash, str) else None,
    }


def to_dict(embedding: Embedding) -> dict[str, Any]:
    """The WebUI's dict with a (V, D) tensor; EmbeddingFormatError for SDXL, which it has no place for."""
    if len(embedding.vectors) != 1:
        message = (
            f"The embedding {embedding.name!r} is for {embedding.family}; the WebUI's .pt holds one text encoder's vectors. "
            "Write it as .safetensors, which the WebUI reads too."
        )
        raise EmbeddingFormatError(message)
    return {
        "string_to_token": {"*": _TOKEN_ID},
        "string_to_param": {"*": next(iter(embedding.vectors.values()))},
        "name": embedding.name,
        "step": embedding.step,
        "sd_checkpoint": embedding.checkpoint_hash and embedding.checkpoint_hash[:_SHORT_HASH],
        "sd_checkpoint_name": embedding.checkpoint,
    }


def write(embedding: Embedding, path: Path) -> None:
    """As the WebUI saves a training's result."""
    torch_pickle.dump(to_dict(embedding), path)


def checksum(embedding: Embedding) -> str:
    """The four hexadecimal digits by which the WebUI tells whether a .optim belongs to these vectors."""
    value = 0
    for vectors in embedding.vectors.values():
        for number in (vectors.reshape(-1) * 100).tolist():  # (V * D,)
            value = (value * 281 ^ int(number) * 997) & 0xFFFFFFFF
    return f"{value & 0xFFFF:04x}"


def read_optimizer(path: Path, embedding: Embedding) -> dict[str, Any] | None:
    """The optimizer's state dict in the .optim beside the .pt at `path`, or None if there is none for these very vectors.

    EmbeddingFormatError if the file is damaged or unsafe.
    """
    beside = _optimizer_file(path)
    if not beside.is_file():
        return None
    with beside.open("rb") as file, explained(beside):
        refuse_large(beside.stat().st_size)
        data = torch_pickle.load(file)
        state = data["optimizer_state_dict"]
        if not isinstance(state["state"], dict) or not all(isinstance(group, dict) for group in state["param_groups"]):
            message = "it does not hold the state of an optimizer. Delete it: training then begins without it."
            raise EmbeddingFormatError(message)
        refuse_large(4 * _numbers(state["state"]))  # the optimizer copies a tensor as often as it is mentioned
        return state if data["hash"] == checksum(embedding) else None


def _numbers(state: dict[Any, Any]) -> int:
    """In all tensors of an optimizer's state, one that is there twice counted twice."""
    count = 0
    ahead: list[Any] = [state]
    while ahead:
        each = ahead.pop()
        if isinstance(each, Tensor):
            count += each.numel()
        elif isinstance(each, dict | list | tuple):
            ahead.extend(each.values() if isinstance(each, dict) else each)
    return count


def write_optimizer(path: Path, embedding: Embedding, state: dict[str, Any]) -> None:
    """The state dict of this embedding's optimizer, beside the .pt at `path`, as the WebUI has it."""
    torch_pickle.dump({"hash": checksum(embedding), "optimizer_state_dict": state}, _optimizer_file(path))


def _optimizer_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.optim")
