"""Faster CUDA kernels for the time of training: TF32 and cuDNN's search for the fastest convolution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def fast_kernels(device: torch.device) -> Iterator[None]:
    """Compute float32 in TF32 and let cuDNN choose the fastest convolution for each shape; afterwards restore the settings.

    They are settings of the whole process, so use this only while holding the host's lock. It changes nothing on other
    devices than CUDA.
    """
    if device.type != "cuda":
        yield
        return
    cudnn, before, newer = torch.backends.cudnn, _settings(), _newer_settings()
    try:
        if before is not None:
            torch.set_float32_matmul_precision("high")
            cudnn.allow_tf32 = cudnn.benchmark = True
        yield
    finally:
        if before is not None:
            precision, cudnn.allow_tf32, cudnn.benchmark = before
            torch.set_float32_matmul_precision(precision)
            for owner, each in newer:  # the older interface leaves "ieee" where there was "none"
                owner.fp32_precision = each


def _settings() -> tuple[str, bool, bool] | None:
    """Matmul precision, cuDNN's TF32 and benchmark; None if they were set by torch's newer interface: leave them then."""
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    except RuntimeError:
        return None


def _newer_settings() -> list[tuple[Any, str]]:
    """The settings that torch has besides since 2.9: their owners and values."""
    backends = torch.backends
    owners: tuple[Any, ...] = (
        backends.cuda.matmul,
        getattr(backends.mkldnn, "matmul", None),
        getattr(backends.cudnn, "conv", None),
    )
    return [(each, each.fp32_precision) for each in owners if hasattr(each, "fp32_precision")]
