"""The weights in a .ckpt file, read without unpickling."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ti_trainer.errors import ModelError
from ti_trainer.formats.recognition import MAX_HEADER, format_of, head_of, stranger
from ti_trainer.formats.tensor_names import spec_of

if TYPE_CHECKING:
    from torch import Tensor


def read_checkpoint(path: Path, *, only_shapes: bool = False) -> dict[str, Tensor]:
    """The tensors by name in a checkpoint of torch.save; ModelError if it is damaged, unsafe or not a checkpoint.

    With `only_shapes` the tensors are on the meta device, and their numbers are not read.
    """
    from torch import Tensor

    from ti_trainer.formats import torch_pickle

    try:
        with path.open("rb") as file:
            data = torch_pickle.load(file, torch_pickle.OF_A_CHECKPOINT, only_shapes=only_shapes)
        if isinstance(data, dict):
            data = data.get("state_dict", data)
        tensors = {str(key): value for key, value in _named(data) if isinstance(value, Tensor)}
    except Exception as error:  # a damaged file provokes anything in the libraries that parse it
        message = f"The checkpoint {path} cannot be read: {str(error)[:300] or type(error).__name__}"
        raise ModelError(message) from error
    if not tensors:
        names = data if isinstance(data, dict) else {}
        what = "an embedding" if "string_to_param" in names else spec_of(names) or "a file without weights"
        message = f"{path} is {what}. Choose a checkpoint."
        raise ModelError(message)
    return tensors


def _named(data: Any) -> Iterable[tuple[Any, Any]]:
    return data.items() if isinstance(data, dict) else [("", data)]


def is_pickle(path: Path) -> bool:
    """Whether a checkpoint was written by torch.save, whatever its extension.

    ModelError for a file without tensors, with what it is: a web page, a Git LFS pointer ...
    """
    try:
        head, size = head_of(path)
    except OSError as error:
        message = f"The checkpoint {path} cannot be read: {error}"
        raise ModelError(message) from error
    kind, header = format_of(head, size), int.from_bytes(head[:8], "little")
    if kind == "safetensors" and header > MAX_HEADER:
        message = f"The checkpoint {path} cannot be read: its header has {header} bytes, expected at most {MAX_HEADER}."
        raise ModelError(message)
    if kind in ("safetensors", "zip", "pickle"):
        return kind != "safetensors"
    what = stranger(head, size) or "is damaged, or neither a .safetensors nor a .ckpt file. Choose a checkpoint."
    message = f"The checkpoint {path} cannot be read: it {what}"
    raise ModelError(message)
