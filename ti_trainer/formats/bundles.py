"""Embeddings inside a LoRA: tensors named `bundle_emb.NAME.KEY` in its .safetensors file.

OneTrainer writes them, with a key for each text encoder (clip_l, clip_g, t5); scripts of LyCORIS write the keys of an
embedding's own file, such as `string_to_param.*`. AUTOMATIC1111's WebUI, ComfyUI and SD.Next read both, Forge does not. The
LoRA's other tensors are never loaded: they are copied block by block.

V vectors, D width of a text encoder's token embeddings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ti_trainer import files
from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError, EmbeddingFormatError
from ti_trainer.formats import checks, recognition, safetensors_file
from ti_trainer.formats.named_tensors import from_tensors, to_arrays
from ti_trainer.formats.precision import encoded, rounded
from ti_trainer.formats.tensor_names import spec_of

PREFIX = "bundle_emb."
_KEY = re.compile(r"bundle_emb\.(?P<name>.+?)\.(?P<key>string_to_param\..+|[^.]+)", re.DOTALL)
_STORED = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
_BLOCK = 1 << 20  # bytes that are copied at a time
_ALIGNMENT = 8  # bytes; what is put before other tensors is a multiple of it, so that they stay aligned


@dataclass(frozen=True)
class Bundle:
    """A LoRA's file by its header: where its data starts, its tensors by name, and its metadata."""

    path: Path
    start: int
    tensors: Mapping[str, Mapping[str, Any]]
    metadata: Mapping[str, str] | None

    @property
    def words(self) -> dict[str, dict[str, str]]:
        """The names of tensors of each embedding: name -> key -> name of the tensor."""
        found: dict[str, dict[str, str]] = {}
        for each in self.tensors:
            if match := _KEY.fullmatch(each):
                found.setdefault(match["name"], {})[match["key"]] = each
        return found

    def shapes(self, name: str) -> dict[str, list[int]]:
        """[V, D] by key of one embedding, from the header."""
        return {key: list(self.tensors[tensor]["shape"]) for key, tensor in self.words[name].items()}


def open_bundle(path: Path) -> Bundle:
    """Read the header of a LoRA; EmbeddingFormatError if it is no .safetensors file or is damaged."""
    checks.refuse_missing(path)
    with path.open("rb") as file, checks.explained(path):
        size = path.stat().st_size
        if recognition.format_of(file.read(recognition.HEAD), size) != "safetensors":
            message = "it is not a .safetensors file, the only format of LoRAs that can hold embeddings. Choose a LoRA."
            raise EmbeddingFormatError(message)
        file.seek(0)
        return Bundle(path, *safetensors_file.read_layout(file, size))


def bundled(path: Path) -> Bundle | None:
    """The file with embeddings in it; None for any other file."""
    try:
        bundle = open_bundle(path)
    except (EmbeddingFormatError, OSError):
        return None
    return bundle if bundle.words else None


def take_out(path: Path, name: str) -> Embedding:
    """One of the embeddings in a LoRA; ConfigError if there is none of this name, EmbeddingFormatError if it is damaged."""
    bundle = open_bundle(path)
    words = bundle.words
    if name not in words:
        have = ", ".join(list(words)[:20]) or "none"
        message = f"{path.name} has no embedding {name!r} in it (found: {have})."
        raise ConfigError(message)
    with path.open("rb") as file, checks.explained(path):
        arrays = {}
        for key, tensor in words[name].items():
            arrays["*" if key.startswith("string_to_param.") else key] = _array(file, bundle, tensor)
        embedding = from_tensors(arrays, name, t5=True)
    info = {"format": "bundle", "tool": embedding.info.get("tool", "another"), "where": path.name}
    return Embedding(name, embedding.arrays, info=info)


def put_in(embedding: Embedding, lora: Path, target: Path, dtype: str = "fp32", *, replace: bool = False) -> Bundle:
    """Write a copy of a LoRA with the embedding in it; returns the header of the LoRA before.

    The LoRA's other tensors keep their bytes, and its metadata its text. ConfigError if the name cannot be used, or is taken
    and not to be replaced; EmbeddingFormatError if the file is no LoRA.
    """
    bundle, name = open_bundle(lora), embedding.name
    if "." in name:
        message = (
            f"The name {name!r} contains a dot: the WebUI reads a bundled embedding's name only up to it. Choose another."
        )
        raise ConfigError(message)
    what = spec_of(each for each in bundle.tensors if not each.startswith(PREFIX))
    if "LoRA" not in (what or ""):
        message = f"{lora.name} is {what or 'no LoRA'}. Choose a LoRA."
        raise EmbeddingFormatError(message)
    taken = next((each for each in bundle.words if each.casefold() == name.casefold()), None)
    if taken is not None and not replace:
        message = f"{lora.name} has an embedding {taken!r} in it already: choose another name, or overwrite it."
        raise ConfigError(message, "overwrite")
    left_out = set(bundle.words[taken].values()) if taken is not None else set()
    ready = rounded(checks.writable(embedding), dtype)
    key = next(iter(ready.widths))  # a single encoder's name, which OneTrainer, ComfyUI and the WebUI read
    new = {f"{PREFIX}{name}.{each}": encoded(vectors, dtype) for each, vectors in to_arrays(ready, key).items()}
    header, copied, end = _laid_out(bundle, new, left_out, _STORED[dtype])
    with files.atomic(target) as temporary, temporary.open("wb") as written, lora.open("rb") as source:
        written.write(len(header).to_bytes(8, "little") + header)
        for array in new.values():
            written.write(array.tobytes())
        for first, last in copied:
            _copy(source, written, bundle.start + first, last - first)
        if written.tell() != 8 + len(header) + end:
            message = f"{lora.name} changed while it was copied: try again."
            raise EmbeddingFormatError(message)
    return bundle


def _laid_out(
    bundle: Bundle, new: Mapping[str, Any], left_out: set[str], dtype: str
) -> tuple[bytes, list[tuple[int, int]], int]:
    """The header of the new file, the ranges of the old one's data to copy in order, and the size of the new data.

    The new tensors come first: after others, they might not be aligned.
    """
    described: dict[str, Any] = {} if bundle.metadata is None else {"__metadata__": bundle.metadata}
    end = 0
    for name, array in new.items():
        described[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    if end % _ALIGNMENT:
        message = f"the embedding has {end} bytes, expected a multiple of {_ALIGNMENT}. Store it in another dtype."
        raise EmbeddingFormatError(message)
    copied: list[tuple[int, int]] = []
    for name, each in sorted(bundle.tensors.items(), key=lambda item: item[1]["data_offsets"]):
        if name in left_out:
            continue
        first, last = each["data_offsets"]
        if copied and first < copied[-1][1]:
            message = f"{bundle.path.name}: its tensor {name[:60]!r} overlaps another. Copy or download it again."
            raise EmbeddingFormatError(message)
        described[name] = {**each, "data_offsets": [end, end + last - first]}
        end += last - first
        if copied and copied[-1][1] == first:
            copied[-1] = (copied[-1][0], last)
        else:
            copied.append((first, last))
    header = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return header + b" " * (-len(header) % 8), copied, end


def _array(file: BinaryIO, bundle: Bundle, tensor: str) -> Any:
    """A tensor's numbers; only an embedding's size is read."""
    each = bundle.tensors[tensor]
    first, last = each["data_offsets"]
    checks.refuse_large(last - first)
    file.seek(bundle.start + first)
    return safetensors_file.array_of({**each, "data": file.read(last - first)})


def _copy(source: BinaryIO, target: BinaryIO, start: int, size: int) -> None:
    source.seek(start)
    for block in _blocks(source, size):
        target.write(block)


def _blocks(source: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (block := source.read(min(_BLOCK, size))):
        size -= len(block)
        yield block
