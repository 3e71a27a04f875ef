"""A pretended CUDA device: fake tensors of torch have shapes, dtypes and devices but no data, and their memory is counted.

It needs the library of `fake_cuda.cpp`, preloaded into the process: `building.py`. A device or dtype that does not match
raises, as on a GPU. `FakeDevice` counts memory as torch's allocator does, and notes what makes the CPU wait for the device.
"""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GIB, MIB = 2**30, 2**20
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
PACKAGE = Path(__file__).parents[2] / "ti_trainer"
ALLOCATED_AT_ONCE = 512  # bytes, torch's allocator rounds up to
READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "repeat_interleave.Tensor")
COPIES = ("_to_copy", "copy_")


class FakeDevice(TorchDispatchMode):
    """Counts the memory of CUDA tensors, in bytes, and notes where the package waits for the device.

    `total` is the device's memory: more raises OutOfMemoryError, as on a GPU.
    """

    def __init__(self, total: float = float("inf")) -> None:
        super().__init__()
        self.total, self.allocated, self.peak = total, 0, 0
        self.waits: list[str] | None = None
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.waits is not None:
            self._note_wait(self.waits, func, args, kwargs)
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            dtype = args[0].dtype  # there is no data: any number
            return 1.0 if dtype.is_floating_point else dtype == torch.bool or 1
        if func is torch.ops.aten.equal.default and isinstance(args[0], FakeTensor):
            return False
        out = func(*args, **kwargs)
        for each in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(each, FakeTensor) and each.fake_device.type == "cuda":
                self._count(each)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = -(-storage.nbytes() // ALLOCATED_AT_ONCE) * ALLOCATED_AT_ONCE
        if self.allocated + size > self.total:
            message = f"CUDA out of memory. Tried to allocate {size / MIB:.1f} MiB"
            raise torch.cuda.OutOfMemoryError(message)
        self._known.add(key)
        weakref.finalize(storage, self._free, key, size)
        self.allocated += size
        self.peak = max(self.peak, self.allocated)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.allocated -= size

    def _note_wait(self, waits: list[str], func: Any, args: Any, kwargs: Any) -> None:
        name = func._schema.name.removeprefix("aten::")
        tensors = [each for each in args if isinstance(each, Tensor)]
        if name in READS and any(each.device.type == "cuda" for each in tensors):
            waits.append(f"{name} at {where()}")
        elif name.startswith("index") and tensors and tensors[0].device.type == "cuda":
            places = [each for each in tree_leaves(args[1:2]) if isinstance(each, Tensor) and each.ndim]
            if any(each.device.type == "cpu" for each in places):
                waits.append(f"an index copied without pinned memory at {where()}")
        elif name == "_to_copy":
            self._note_copy(
                waits, tensors[0], torch.device(kwargs.get("device") or tensors[0].device), kwargs.get("non_blocking")
            )
        elif name == "copy_" and len(tensors) == 2:
            blocking = args[2:] or (kwargs.get("non_blocking"),)
            self._note_copy(waits, tensors[1], tensors[0].device, blocking[0])

    def _note_copy(self, waits: list[str], source: Tensor, target: torch.device, non_blocking: bool | None) -> None:
        from_gpu, to_gpu = source.device.type == "cuda", target.type == "cuda"
        if from_gpu == to_gpu or (to_gpu and source.ndim == 0 and source.numel() == 1 and non_blocking):
            return
        if from_gpu or not (non_blocking and is_pinned(source)):
            kind = "read" if from_gpu else "copied without pinned memory"
            waits.append(f"{tuple(source.shape)} {kind} at {where()}")

    def forget(self) -> None:
        """Let `peak` count from what is allocated now."""
        self.peak = self.allocated

    @contextmanager
    def watching(self) -> Iterator[list[str]]:
        """Gives the list of what makes the CPU wait within it."""
        self.waits = []
        try:
            yield self.waits
        finally:
            self.waits = None


class FakeStream:
    """Everything is in order here: tests/offload/test_prefetching.py is about streams."""

    def __init__(self, device: torch.device | None = None) -> None:
        pass

    def wait_stream(self, stream: FakeStream) -> None:
        pass

    def wait_event(self, event: object) -> None:
        pass

    def record_event(self) -> object:
        return object()


def where() -> str:
    """The innermost line of the package that is being executed."""
    own = [each for each in traceback.extract_stack() if Path(each.filename).is_relative_to(PACKAGE)]
    if not own:
        return "?"
    return f"{Path(own[-1].filename).relative_to(PACKAGE)}:{own[-1].lineno} {own[-1].line}"


def is_pinned(tensor: Tensor, *_: object) -> bool:
    return getattr(tensor, "pretends_pinned", False)


def pin_memory(tensor: Tensor, *_: object) -> Tensor:
    """As on a GPU, where it copies; fake tensors have no pinned memory."""
    copy = tensor.clone()
    copy.pretends_pinned = True
    return copy


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The kernels that a GPU uses, which keep no scores."""
    if query.device.type != "cuda":
        return _attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
    if torch.is_autocast_enabled("cuda"):  # which casts before it chooses a kernel
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(dtype)
    assert query.dtype == key.dtype == value.dtype, (query.dtype, key.dtype, value.dtype)
    if attn_mask is None and query.dtype != torch.float32:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
        assert attn_mask.dtype == query.dtype, (attn_mask.dtype, query.dtype)
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]


_attention = nn.functional.scaled_dot_product_attention


def module_apply(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """nn.Module._apply as for ordinary tensors, which keeps the parameters and changes their data."""
    for each in module.children() if recurse else ():
        each._apply(fn)
    for each in module._parameters.values():
        if each is not None:
            with torch.no_grad():
                each.data = fn(each)
    for name, each in module._buffers.items():
        if each is not None:
            module._buffers[name] = fn(each)
    return module


def set_data(tensor: FakeTensor, data: Tensor) -> None:
    torch._C.TensorBase.data.__set__(tensor, data)
    tensor.fake_device = data.device
    tensor.pretends_pinned = is_pinned(data)


def get_data(tensor: FakeTensor) -> Tensor:
    return torch._C.TensorBase.data.__get__(tensor)


def get_item(tensor: FakeTensor, index: Any) -> Tensor:
    """Indexing with a list copies it to the device, and waits for that."""
    if isinstance(index, list):
        index = torch.tensor(index, device=tensor.device)
    return torch._C.TensorBase.__getitem__(tensor, index)


@contextmanager
def fake_cuda(total: float = float("inf")) -> Iterator[FakeDevice]:
    """Within it new tensors are fake, and there is a CUDA device of `total` bytes."""
    device, make = FakeDevice(total), torch.tensor

    def tensor(data: Any, *, device: Any = None, **named: Any) -> Tensor:
        made = make(data, **named)
        if isinstance(made, FakeTensor):
            made.constant = None  # with which torch would compute on a real device
        return made if device is None else made.to(device)

    changes: list[tuple[Any, str, Any]] = [
        (torch, "tensor", tensor),
        (torch.Tensor, "pin_memory", pin_memory),
        (torch.Tensor, "is_pinned", is_pinned),
        (nn.functional, "scaled_dot_product_attention", attention),
        (nn.Module, "_apply", module_apply),
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "is_bf16_supported", lambda including_emulation=True: True),
        (torch.cuda, "current_device", lambda: 0),
        (torch.cuda, "get_device_capability", lambda device=None: (8, 6)),
        (torch.cuda, "get_device_name", lambda device=None: "pretended"),
        (torch.cuda, "get_device_properties", lambda device=None: SimpleNamespace(total_memory=_whole(device_of()))),
        (torch.cuda, "empty_cache", lambda: None),
        (torch.cuda, "Stream", FakeStream),
        (torch.cuda, "current_stream", FakeStream),
        (torch.cuda, "stream", nullcontext),
        (torch.cuda, "mem_get_info", lambda device=None: (_free(device_of()), _whole(device_of()))),
        (torch.cuda, "memory_reserved", lambda device=None: device_of().allocated),
        (torch.cuda, "memory_allocated", lambda device=None: device_of().allocated),
        (torch.cuda, "max_memory_allocated", lambda device=None: device_of().peak),
    ]

    def device_of() -> FakeDevice:
        return device

    with pytest.MonkeyPatch.context() as patch:
        for target, name, value in changes:
            patch.setattr(target, name, value)
        patch.setattr(FakeTensor, "__getitem__", get_item, raising=False)
        patch.setattr(FakeTensor, "data", property(get_data, set_data), raising=False)
        with FakeTensorMode(allow_non_fake_inputs=True), device:
            yield device


def _whole(device: FakeDevice) -> int:
    return int(min(device.total, 80 * GIB))


def _free(device: FakeDevice) -> int:
    return _whole(device) - device.allocated


def filled(*modules: nn.Module) -> None:
    """Give modules on the meta device fake weights on the CPU, as if they had been read from a file."""
    for module in (each for one in modules for each in one.modules()):
        for name, each in module._parameters.items():
            if each is not None:
                module._parameters[name] = nn.Parameter(torch.empty(each.shape, dtype=each.dtype), requires_grad=False)
        for name, each in module._buffers.items():
            if each is not None:
                module._buffers[name] = torch.zeros(each.shape, dtype=each.dtype)
