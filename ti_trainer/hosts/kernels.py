"""How a CUDA device multiplies and convolves while it trains. Knows no network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fast_kernels(device: torch.device) -> Iterator[None]:
    """Within it, float32 goes through TF32 and cuDNN looks for the fastest convolution of each shape; then all is as before.

    Such settings are the whole process's: only while it is our turn. On other devices nothing is changed.
    """
    if device.type != "cuda":
        yield
        return
    cudnn, before = torch.backends.cudnn, _settings()
    try:
        if before is not None:
            torch.set_float32_matmul_precision("high")
            cudnn.allow_tf32 = cudnn.benchmark = True
        yield
    finally:
        if before is not None:
            precision, cudnn.allow_tf32, cudnn.benchmark = before
            torch.set_float32_matmul_precision(precision)


def _settings() -> tuple[str, bool, bool] | None:
    """As they are; None where somebody has set them in torch's newer way, which the older cannot tell of: they stay."""
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    except RuntimeError:
        return None
