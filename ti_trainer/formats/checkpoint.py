"""The weights in a .ckpt, read as embeddings are: nothing in it is run. Knows nothing of what the weights are for."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ti_trainer.errors import ModelError
from ti_trainer.formats import torch_pickle
from ti_trainer.formats.recognition import format_of, head_of, stranger


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors by name in a checkpoint that torch.save wrote; ModelError if it is damaged, unsafe or something else."""
    refuse_stranger(path)
    try:
        with path.open("rb") as file:
            data = torch_pickle.load(file, torch_pickle.OF_A_CHECKPOINT)
        if isinstance(data, Tensor):
            return {"": data}
        return {str(key): value for key, value in data.get("state_dict", data).items() if isinstance(value, Tensor | list)}
    except Exception as error:  # a damaged file provokes anything in the libraries that parse it
        message = f"The checkpoint {path} cannot be read: {str(error)[:300] or type(error).__name__}"
        raise ModelError(message) from error


def refuse_stranger(path: Path) -> None:
    """ModelError for a file that is no file of tensors, and says what it is: a web page, a Git LFS pointer ..."""
    try:
        head, size = head_of(path)
    except OSError as error:
        message = f"The checkpoint {path} cannot be read: {error}"
        raise ModelError(message) from error
    if format_of(head, size) in ("safetensors", "zip", "pickle"):
        return
    what = stranger(head, size) or "is no .safetensors and no file of torch.save. Choose a checkpoint."
    message = f"The checkpoint {path} cannot be read: it {what}"
    raise ModelError(message)
