"""The optimizer's state that the WebUI saves next to an embedding, in a .optim file.

Source: AUTOMATIC1111 v1.10.1, modules/textual_inversion/textual_inversion.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ti_trainer.embedding import Embedding
from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats import torch_pickle
from ti_trainer.formats.checks import explained, refuse_large


def checksum(embedding: Embedding) -> str:
    """The four hexadecimal digits by which the WebUI checks that a .optim file belongs to these vectors."""
    value = 0
    for vectors in embedding.vectors.values():
        for number in (vectors.reshape(-1) * 100).tolist():  # (V * D,)
            value = (value * 281 ^ int(number) * 997) & 0xFFFFFFFF
    return f"{value & 0xFFFF:04x}"


def read_optimizer(path: Path, embedding: Embedding) -> dict[str, Any] | None:
    """The optimizer's state dict in the .optim next to the .pt at `path`; None if there is none for these vectors.

    EmbeddingFormatError if the file is damaged or unsafe.
    """
    file_path = _optimizer_file(path)
    if not file_path.is_file():
        return None
    with file_path.open("rb") as file, explained(file_path):
        refuse_large(file_path.stat().st_size)
        data = torch_pickle.load(file)
        state = data["optimizer_state_dict"]
        if not isinstance(state["state"], dict) or not all(isinstance(group, dict) for group in state["param_groups"]):
            message = "it does not hold the state of an optimizer. Delete it: training then starts with a new optimizer."
            raise EmbeddingFormatError(message)
        refuse_large(4 * _numbers(state["state"]))  # the optimizer copies a tensor each time it occurs
        return state if data["hash"] == checksum(embedding) else None


def _numbers(state: dict[Any, Any]) -> int:
    """The count of numbers in an optimizer's state; a tensor that occurs twice is counted twice."""
    count = 0
    pending: list[Any] = [state]
    while pending:
        each = pending.pop()
        if isinstance(each, Tensor):
            count += each.numel()
        elif isinstance(each, dict | list | tuple):
            pending.extend(each.values() if isinstance(each, dict) else each)
    return count


def write_optimizer(path: Path, embedding: Embedding, state: dict[str, Any]) -> None:
    """Write the state dict of this embedding's optimizer next to the .pt at `path`, as the WebUI does."""
    torch_pickle.dump({"hash": checksum(embedding), "optimizer_state_dict": state}, _optimizer_file(path))


def _optimizer_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.optim")
