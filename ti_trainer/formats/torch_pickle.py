"""Files of torch.save: read without unpickling, and written so that the safe readers of other tools accept them.

A pickle is a program for a stack machine. `pickle_machine` interprets the instructions that build plain values and tensors
and refuses all others; nothing that a file names is imported or called. `pickle` and `torch.load` are not used: code could
escape the latter's `weights_only` before torch 2.6 (CVE-2025-32434).
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from io import SEEK_END, BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import torch
from torch import Tensor

from ti_trainer import files
from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats.pickle_machine import BoundedReader, Builder, Global, Machine, Object, set_items

StorageReader = Callable[[str, torch.dtype, int], Tensor]  # key, dtype, count -> (count,)


class Limits(NamedTuple):
    """Limits for a file. An embedding's pickle has 40 instructions, that of its optimizer 130."""

    instructions: int = 100_000
    pickle_bytes: int = 4 * 2**20
    directory_bytes: int = 2**20  # of a zip archive


OF_AN_EMBEDDING = Limits()
OF_A_CHECKPOINT = Limits(1_000_000, 64 * 2**20, 16 * 2**20)  # SD 1.5 with its EMA weights has 60 000 instructions
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_MAX_DIMENSIONS = 8
_MAX_COUNT = 2**40  # numbers in a tensor
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
    "torch.storage UntypedStorage": torch.uint8,  # for newer dtypes
}
_LATER_DTYPES = {
    f"torch {name}": getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "uint16", "uint32", "uint64")
    if hasattr(torch, name)
}


def load(file: BinaryIO, limits: Limits = OF_AN_EMBEDDING, *, only_shapes: bool = False) -> Any:
    """The plain values and tensors in a file of torch.save, new (zip) or old; else EmbeddingFormatError.

    They take no more memory than the file has bytes. With `only_shapes` tensors are on the meta device.
    """
    size = file.seek(0, SEEK_END)
    file.seek(0)
    zipped = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    file.seek(0)
    return (_load_zip if zipped else _load_legacy)(file, size, limits, only_shapes)


def dump(data: Any, path: Path) -> None:
    """Write atomically with torch.save; the same bytes for the same data.

    Records of newer torch versions that readers do not need are left out: WebUIs refuse them (modules/safe.py), those before
    v1.10 also the byte order, which is little-endian where it is not said.
    """
    buffer = BytesIO()
    torch.save(data, buffer)
    order = "" if sys.byteorder == "little" else "|byteorder"
    needed = rf"[^/]+/(data\.pkl|data/\d+|version{order})"
    with files.atomic(path) as new, ZipFile(buffer) as saved, ZipFile(new, "w") as archive:
        for name in saved.namelist():
            if re.fullmatch(needed, name):
                archive.writestr(ZipInfo(name), saved.read(name))


def _load_zip(file: BinaryIO, size: int, limits: Limits, only_shapes: bool) -> Any:
    with ZipFile(BoundedReader(file, limits.directory_bytes, "zip directory")) as directory:
        members = {member.filename: member for member in directory.infolist()}
    pickles = [name for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(pickles) != 1:
        message = (
            f"it is a zip archive with {len(pickles)} records data.pkl, expected 1: it is not from torch.save. Unpack it."
        )
        raise EmbeddingFormatError(message)
    unpacked = sum(member.file_size for member in members.values())
    packed = any(member.compress_type != ZIP_STORED or member.flag_bits & 1 for member in members.values())
    if packed or unpacked > size:
        message = f"its {size} bytes unpack to {unpacked} by its directory, but torch.save does not compress."
        raise EmbeddingFormatError(message)
    folder = pickles[0].removesuffix(".pkl")
    if f"{folder.removesuffix('/data')}/constants.pkl" in members:
        message = "it is a TorchScript program. Choose another file."
        raise EmbeddingFormatError(message)
    read: dict[str, bytearray] = {}

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        if only_shapes:
            return torch.empty(count, dtype=dtype, device="meta")
        if key not in read:
            read[key] = bytearray(members[f"{folder}/{key}"].file_size)
            with archive.open(f"{folder}/{key}") as record:
                _fill(read[key], record)
        return torch.frombuffer(read[key], dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)

    with ZipFile(file) as archive, archive.open(pickles[0]) as record:
        return _machine(storage, limits).run(BoundedReader(record, limits.pickle_bytes, "pickle"))


def _load_legacy(file: BinaryIO, size: int, limits: Limits, only_shapes: bool) -> Any:
    """Five pickles (magic number, version, system, the data, the storages' keys), then the storages."""
    raw: dict[str, bytearray] = {}
    room = size

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        nonlocal room
        wanted = count * dtype.itemsize
        if key not in raw:
            room -= wanted
            if count < 0 or room < 0:
                message = "it names more numbers than it holds. Copy or download it again."
                raise EmbeddingFormatError(message)
            raw[key] = bytearray(0 if only_shapes else wanted)  # filled below: the numbers are at the end
        if only_shapes:
            return torch.empty(count, dtype=dtype, device="meta")
        return torch.frombuffer(raw[key], dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)

    machine, stream = _machine(storage, limits), BoundedReader(file, limits.pickle_bytes, "pickle")
    if machine.run(stream) != _LEGACY_MAGIC:
        message = "it is a pickle, but not from torch.save. Choose another file."
        raise EmbeddingFormatError(message)
    _, _, data, keys = (machine.run(stream) for _ in range(4))
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in raw for key in keys):
        message = "it names no storages. Choose another file."
        raise EmbeddingFormatError(message)
    for key in [] if only_shapes else keys:
        file.read(8)  # the count, which is known
        _fill(raw[key], file)
    return data


def _fill(raw: bytearray, file: Any) -> None:
    if file.readinto(raw) < len(raw):
        message = "it is cut short. Copy or download it again."
        raise EmbeddingFormatError(message)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or not 0 <= len(size) == len(stride) <= _MAX_DIMENSIONS:
        message = "it holds a tensor of no usual shape. Choose another file."
        raise EmbeddingFormatError(message)
    if not all(type(number) is int and 0 <= number < _MAX_COUNT for number in (offset, *size, *stride)):
        message = "it holds a tensor whose shape is no numbers. Copy or download it again."
        raise EmbeddingFormatError(message)
    if math.prod(size) > storage.numel():
        message = f"it holds a tensor of shape {size} made of {storage.numel()} numbers. Copy or download it again."
        raise EmbeddingFormatError(message)
    return storage.as_strided(size, stride, offset)  # refuses what lies outside of the storage


def _tensor_of_later_dtype(storage: Tensor, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    """`rest` is requires_grad, hooks, dtype, metadata."""
    if not isinstance(rest[2], Global):  # a tuple may take for ever to hash
        message = "it holds a tensor of an unknown type of numbers. Choose another file."
        raise EmbeddingFormatError(message)
    return _tensor(storage.view(_LATER_DTYPES[rest[2]]), offset, size, stride)


def _dict(pairs: Any = (), *_: Any) -> dict[Any, Any]:
    """An OrderedDict; older versions of Python pass its items to the constructor."""
    made: dict[Any, Any] = {}
    for key, value in pairs if isinstance(pairs, list | tuple) else ():
        set_items(made, [key, value])
    return made


def _nothing(*_: Any) -> Any:
    return Object()


def _first(value: Any, *_: Any) -> Any:
    return value


_BUILDERS: dict[str, Builder] = {
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_tensor_v3": _tensor_of_later_dtype,
    "torch._utils _rebuild_parameter": _first,
    "torch._utils _rebuild_parameter_with_state": _first,
    "torch.nn.modules.container ParameterDict": _nothing,
    "collections OrderedDict": _dict,
    "collections defaultdict": lambda *_: {},
    "torch Size": lambda size=(), *_: size,
}
_BUILDERS |= dict.fromkeys(  # these are next to the weights and not needed
    (
        "__builtin__ set",
        "builtins set",
        *(f"{module} {name}" for module in ("__builtin__", "builtins") for name in ("frozenset", "bytearray")),
        "_codecs encode",
        "argparse Namespace",
        "copyreg _reconstructor",
        "datetime datetime",
        "numpy dtype",
        "numpy ndarray",
        *(f"numpy.{core}.multiarray {name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        *(f"numpy.{core}.numeric _frombuffer" for core in ("core", "_core")),
        *(f"pathlib {name}" for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")),
        "pytorch_lightning.callbacks.model_checkpoint ModelCheckpoint",
        "torch device",
        "torch.serialization _get_layout",
        "torch.torch_version TorchVersion",
    ),
    _nothing,
)
_VALUES = frozenset(  # classes and constants that are named, such as the dtype of an array, but not called
    {
        *_DTYPES,
        *_LATER_DTYPES,
        *(f"torch {str(dtype).removeprefix('torch.')}" for dtype in _DTYPES.values()),
        *(f"{name.removesuffix('Storage')}Tensor" for name in _DTYPES if name != "torch.storage UntypedStorage"),
        *(
            f"{module} {name}"
            for module in ("__builtin__", "builtins")
            for name in ("dict", "list", "int", "float", "object")
        ),
        "torch strided",
        "torch Tensor",
        "torch.nn.parameter Parameter",
    }
)


def _machine(storage: StorageReader, limits: Limits) -> Machine:
    def persistent(reference: Any) -> Any:
        match reference:
            case ("storage", Global() as name, str(key), _, int(count), *rest) if name in _DTYPES and not any(rest):
                return storage(key, _DTYPES[name], count)
            case ("module", Global() as name, *_):  # a class in an old file
                return name
        message = "it refers to its numbers in an unknown way. Choose another file."
        raise EmbeddingFormatError(message)

    def passed_on(name: Any, _: Any, arguments: Any, *__: Any) -> Any:
        return machine.built(name, arguments)

    builders = _BUILDERS | {"torch._tensor _rebuild_from_type_v2": passed_on}
    machine = Machine(builders, _VALUES, persistent, limits.instructions)
    return machine
