"""How a CUDA device multiplies and convolves while it trains. Knows no network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def fast_kernels(device: torch.device) -> Iterator[None]:
    """Within it, float32 goes through TF32 and cuDNN looks for the fastest convolution of each shape; then all is as before.

    Such settings are the whole process's: only while it is our turn. On other devices nothing is changed.
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
            for where, each in newer:  # the older way leaves "ieee" there where nobody had said anything
                where.fp32_precision = each


def _settings() -> tuple[str, bool, bool] | None:
    """As they are; None where somebody has set them in torch's newer way, which the older cannot tell of: they stay."""
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    except RuntimeError:
        return None


def _newer_settings() -> list[tuple[Any, str]]:
    """What torch has beside these since 2.9: where, and what stands there."""
    backends = torch.backends
    places = (backends.cuda.matmul, getattr(backends.mkldnn, "matmul", None), getattr(backends.cudnn, "conv", None))
    return [(each, each.fp32_precision) for each in places if hasattr(each, "fp32_precision")]
