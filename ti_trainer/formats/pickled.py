"""Embeddings in files of torch.save: the WebUI's .pt, old files of kohya's scripts and of diffusers."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import BinaryIO

from torch import Tensor

from ti_trainer.embedding import Embedding
from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats import named_tensors, torch_pickle, webui
from ti_trainer.formats.checks import MAX_BYTES
from ti_trainer.formats.tensor_names import spec_of

_MAX_INNER = 20  # dicts in the file's dict that are examined: a checkpoint has its state_dict and a few more


def read(file: BinaryIO, size: int, stem: str, *, t5: bool = False) -> Embedding:
    """The embedding in a file of torch.save, new (zip) or old; EmbeddingFormatError if there is none."""
    data = torch_pickle.load(file, only_shapes=size > MAX_BYTES)
    if isinstance(data, list | tuple):
        tensors = [each for each in data if isinstance(each, Tensor)]
        if len(data) != 1 or not tensors:
            found = f"{len(data)} tensors" if len(tensors) == len(data) > 0 else "other values"
            message = f"it is a list of {found}; expected one tensor. Choose a file with one embedding."
            raise EmbeddingFormatError(message)
        data = tensors[0]
    if isinstance(data, Tensor):
        data = {named_tensors.KOHYA_KEY: data}
    if not isinstance(data, dict) or "optimizer_state_dict" in data:
        message = "it holds no vectors (a .optim file is the optimizer of a .pt file). Choose an embedding."
        raise EmbeddingFormatError(message)
    if "string_to_param" in data:
        return webui.from_dict(data, stem)
    for inner in [data, *islice((each for each in data.values() if isinstance(each, dict)), _MAX_INNER)]:
        if what := spec_of(inner):
            message = f"it is {what}. Choose an embedding."
            raise EmbeddingFormatError(message)
    named = {key: value for key, value in data.items() if isinstance(value, Tensor)}
    embedding = named_tensors.from_tensors(named or data, stem, t5=t5)
    pickled = {"kohya": "kohya-pt", "diffusers": "diffusers-bin"}.get(embedding.info["format"], embedding.info["format"])
    return replace(embedding, vectors=embedding.arrays, info=embedding.info | {"format": pickled})
