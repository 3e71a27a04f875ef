"""Temporary changes to objects and modules; each context manager undoes its own, also after an error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Change = tuple[Any, str, Any]  # object, attribute name, new value
_MISSING = object()


@contextmanager
def patched(changes: Iterable[Change]) -> Iterator[None]:
    """Set instance attributes, and restore them afterwards; an attribute that the instance did not have is deleted."""
    before: list[Change] = []
    try:
        for target, name, value in changes:
            before.append((target, name, vars(target).get(name, _MISSING)))
            setattr(target, name, value)
        yield
    finally:
        for target, name, value in reversed(before):
            if value is not _MISSING:
                setattr(target, name, value)
            elif name in vars(target):
                delattr(target, name)


@contextmanager
def moved_to(device: torch.device, module: nn.Module) -> Iterator[None]:
    """Move a module's weights to a device, and afterwards to where the first of them was."""
    before = next(module.parameters()).device
    try:
        module.to(device)
        yield
    finally:
        module.to(before)
