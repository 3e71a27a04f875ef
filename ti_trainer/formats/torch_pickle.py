"""Files of torch.save: read without unpickling, and written so that every peer's own safe reader takes them.

A pickle is a program for a stack machine. Its instructions are read here as data: those that build plain values and tensors
are known, every other one is refused, and nothing that a file names is ever imported or called. So `pickle` and `torch.load`
are not used, whose `weights_only` could be broken out of before torch 2.6 (CVE-2025-32434). Knows nothing of embeddings.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Callable
from io import SEEK_END, BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZipFile, ZipInfo

import torch
from torch import Tensor

from ti_trainer import files
from ti_trainer.errors import EmbeddingFormatError

StorageReader = Callable[[str, torch.dtype, int], Tensor]  # key, dtype, count -> (count,)

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}


def load(file: BinaryIO, max_instructions: int = 5000) -> Any:
    """The plain values and tensors in a file of torch.save, new (zip) or old; else EmbeddingFormatError.

    What is read takes no more memory than the file has bytes. An embedding has 40 instructions, its optimizer 130.
    """
    size = file.seek(0, SEEK_END)
    file.seek(0)
    zipped = file.read(2) == b"PK"
    file.seek(0)
    return _load_zip(file, size, max_instructions) if zipped else _load_legacy(file, size, max_instructions)


def dump(data: Any, path: Path) -> None:
    """Write with torch.save, whole or not at all, the same bytes for the same data.

    Newer torch adds records to the archive that no reader needs and the WebUI refuses (its `modules/safe.py` of v1.10.1).
    """
    buffer = BytesIO()
    torch.save(data, buffer)
    with files.atomic(path) as new, ZipFile(buffer) as saved, ZipFile(new, "w") as archive:
        for name in saved.namelist():
            if re.fullmatch(r"[^/]+/(data\.pkl|data/\d+|version|byteorder)", name):
                archive.writestr(ZipInfo(name), saved.read(name))


def _load_zip(file: BinaryIO, size: int, max_instructions: int) -> Any:
    with ZipFile(file) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > size:
            message = f"its {size} bytes unpack to {unpacked}, but torch.save does not pack. Choose another file."
            raise EmbeddingFormatError(message)
        pickles = [name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            message = f"it is a zip archive with {len(pickles)} records data.pkl, expected 1. Choose a file of torch.save."
            raise EmbeddingFormatError(message)
        folder = pickles[0].removesuffix(".pkl")
        read: dict[str, bytearray] = {}

        def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
            if key not in read:
                read[key] = bytearray(archive.read(f"{folder}/{key}"))
            return torch.frombuffer(read[key], dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)

        return _run(BytesIO(archive.read(pickles[0])), storage, max_instructions)


def _load_legacy(file: BinaryIO, size: int, max_instructions: int) -> Any:
    """Five pickles (magic number, version, system, the data, the storages' keys), then the storages."""
    storages: dict[str, Tensor] = {}
    room = size

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        nonlocal room
        if key not in storages:
            room -= count * torch.empty(0, dtype=dtype).element_size()
            if count < 0 or room < 0:
                message = "it names more numbers than it holds. Copy or download it again."
                raise EmbeddingFormatError(message)
            storages[key] = torch.zeros(count, dtype=dtype)  # filled below: the numbers come last
        return storages[key]

    magic, _, _, data, keys = (_run(file, storage, max_instructions) for _ in range(5))
    if magic != _LEGACY_MAGIC:
        message = "it is a pickle that torch.save did not write. Choose another file."
        raise EmbeddingFormatError(message)
    for key in keys:
        if not isinstance(key, str):
            message = "it names no storages. Choose another file."
            raise EmbeddingFormatError(message)
        file.read(8)  # its count, known already
        raw = bytearray(file.read(storages[key].nbytes))
        storages[key].copy_(torch.frombuffer(raw, dtype=storages[key].dtype))
    return data


class _Global(str):
    """The name of a class or function, in place of the thing itself: nothing on the stack can be called."""


class _Object(dict[str, Any]):
    """The attributes of an object, in place of it."""


def _known(name: str) -> _Global:
    if name not in _BUILDERS and name not in _DTYPES:
        message = (
            f"it asks to run {name[:80].replace(' ', '.')!r}: it may be malicious. Nothing of it was run. "
            "Delete it, or get it as .safetensors from a source that you trust."
        )
        raise EmbeddingFormatError(message)
    return _Global(name)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if not all(type(number) is int for number in (offset, *size, *stride)):
        message = "it holds a tensor whose shape is no numbers. Copy or download it again."
        raise EmbeddingFormatError(message)
    if math.prod(size) > storage.numel():
        message = f"it holds a tensor of shape {size} made of {storage.numel()} numbers. Copy or download it again."
        raise EmbeddingFormatError(message)
    return storage.as_strided(size, stride, offset)  # refuses what lies outside of the storage


def _nothing(*_: Any) -> _Object:
    return _Object()


def _built(taken: list[Any]) -> Any:
    name, arguments = taken
    if not isinstance(name, _Global) or name not in _BUILDERS:
        message = "it asks to run what is no function. Choose another file."
        raise EmbeddingFormatError(message)
    return _BUILDERS[name](*arguments)


def _set_items(target: dict[Any, Any], taken: list[Any]) -> None:
    if not all(isinstance(key, (str, int)) for key in taken[::2]):  # others may take for ever to hash
        message = "it holds a dict whose keys are no names. Choose another file."
        raise EmbeddingFormatError(message)
    dict.update(target, zip(taken[::2], taken[1::2], strict=True))


def _set_state(target: Any, taken: list[Any]) -> None:
    if isinstance(target, _Object) and isinstance(taken[0], dict):  # other attributes are of no interest
        target.update(taken[0])


_BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
    "torch.nn.modules.container ParameterDict": _Object,
    "collections OrderedDict": dict,
    "__builtin__ set": _nothing,
    "_codecs encode": _nothing,  # this and the rest are beside the weights in Lightning's checkpoints
    "numpy dtype": _nothing,
    "numpy.core.multiarray scalar": _nothing,
    "numpy._core.multiarray scalar": _nothing,
    "pytorch_lightning.callbacks.model_checkpoint ModelCheckpoint": _nothing,
}
_PUSHES: dict[str, Callable[[Any], Any]] = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "GLOBAL": _known,
} | dict.fromkeys(["BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"], lambda value: value)
_TAKES_MARKED = {"TUPLE", "APPENDS", "SETITEMS"}  # from the stack, all above the last mark
_TAKES = {
    "TUPLE1": 1,
    "APPEND": 1,
    "BUILD": 1,
    "BINPERSID": 1,
    "TUPLE2": 2,
    "SETITEM": 2,
    "REDUCE": 2,
    "NEWOBJ": 2,
    "TUPLE3": 3,
}
_MAKES: dict[str, Callable[[list[Any]], Any]] = {
    "TUPLE": tuple,
    "TUPLE1": tuple,
    "TUPLE2": tuple,
    "TUPLE3": tuple,
    "REDUCE": _built,
    "NEWOBJ": _built,
}
_FILLS: dict[str, Callable[[Any, list[Any]], None]] = {
    "APPEND": list.extend,
    "APPENDS": list.extend,
    "SETITEM": _set_items,
    "SETITEMS": _set_items,
    "BUILD": _set_state,
}


def _run(stream: BinaryIO, storage: StorageReader, max_instructions: int) -> Any:
    """The value that one pickle of protocol 2 describes, tensors over `storage`; EmbeddingFormatError for anything else."""
    makes = _MAKES | {"BINPERSID": lambda taken: _persistent(taken[0], storage)}
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    for opcode, value, _ in islice(pickletools.genops(stream), max_instructions):
        name = opcode.name
        start = marks.pop() if name in _TAKES_MARKED else len(stack) - _TAKES.get(name, 0)
        taken, stack[start:] = stack[start:], []
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            marks.append(len(stack))
        elif name in _PUSHES:
            stack.append(_PUSHES[name](value))
        elif name in makes:
            stack.append(makes[name](taken))
        elif name in _FILLS:
            _FILLS[name](stack[-1], taken)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[value] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[value])
        elif name != "PROTO":
            message = f"its pickle has the instruction {name}, which no tensor needs. Choose another file."
            raise EmbeddingFormatError(message)
    message = f"its pickle has more than {max_instructions} instructions. Choose another file."
    raise EmbeddingFormatError(message)


def _persistent(reference: Any, storage: StorageReader) -> Any:
    match reference:
        case ("storage", _Global() as name, str(key), _, int(count), *rest) if name in _DTYPES and not any(rest):
            return storage(key, _DTYPES[name], count)
        case ("module", _Global() as name, *_):  # a class in an old file
            return name
    message = "it refers to its numbers in an unknown way. Choose another file."
    raise EmbeddingFormatError(message)
