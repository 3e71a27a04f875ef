"""The weights in a .ckpt, read as embeddings are: nothing in it is run. Knows nothing of what the weights are for."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ti_trainer.errors import ModelError
from ti_trainer.formats import torch_pickle

_MAX_INSTRUCTIONS = 1_000_000  # SD 1.5 with its EMA weights has 60 000


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors by name in a checkpoint that torch.save wrote; ModelError if it is damaged, unsafe or something else."""
    try:
        with path.open("rb") as file:
            data = torch_pickle.load(file, _MAX_INSTRUCTIONS)
        return {key: value for key, value in data.get("state_dict", data).items() if isinstance(value, Tensor)}
    except Exception as error:  # a damaged file provokes anything in the libraries that parse it
        message = f"The checkpoint {path} cannot be read: {str(error)[:300] or type(error).__name__}"
        raise ModelError(message) from error
