"""The weights of a prompt's parts, applied to hidden states by the WebUI's own classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ti_trainer.functional.transfer import sent
from ti_trainer.hosts.webui.text import REMEMBERED, Emphasize


def emphasis_by(option: Callable[[], Any]) -> Emphasize:
    """With a class of the WebUI's `sd_emphasis`."""

    @lru_cache(REMEMBERED)  # otherwise the CPU waits for the GPU each time
    def on_device(multipliers: tuple[float, ...], device: torch.device) -> Tensor:
        return sent(torch.tensor([multipliers]), device)

    def emphasize(hidden: Tensor, ids: Sequence[int], multipliers: Sequence[float]) -> Tensor:
        emphasis = option()
        emphasis.tokens = [list(ids)]
        emphasis.multipliers = on_device(tuple(multipliers), hidden.device)
        emphasis.z = hidden
        emphasis.after_transformers()
        return emphasis.z

    return emphasize
