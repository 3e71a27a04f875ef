"""The optimizers that a run can choose from.

To add one, write a function that builds it and give it a name in OPTIMIZERS: the option `optimizer` takes its choices from
there. Import torch inside the function, and a class of your own too, from a file such as sphere.py: options are read without
torch. Builders must not change `groups`. Everything that `state_dict()` returns is saved with the run, parameter groups too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ti_trainer.errors import ConfigError

if TYPE_CHECKING:
    from torch.optim import Optimizer

ParameterGroup = dict[str, Any]  # "params": the tensors of one embedding; "lr": its learning rate
Builder = Callable[[list[ParameterGroup], float], "Optimizer"]


def adamw(groups: list[ParameterGroup], learning_rate: float) -> Optimizer:
    """AdamW (arXiv:1711.05101) without weight decay, as in the WebUI. `groups` are left unchanged."""
    from torch.optim import AdamW

    try:
        return AdamW([dict(group) for group in groups], learning_rate, weight_decay=0.0, fused=True)
    except RuntimeError:  # older versions of torch have no fused AdamW for the CPU
        return AdamW([dict(group) for group in groups], learning_rate, weight_decay=0.0)


def adamw_8bit(groups: list[ParameterGroup], learning_rate: float) -> Optimizer:
    """AdamW with its state in 8 bits (arXiv:2110.02861). bitsandbytes leaves tensors of fewer than 4,096 numbers in fp32."""
    optimizer: Optimizer = _package("bitsandbytes", "adamw8bit").optim.AdamW8bit(groups, learning_rate, weight_decay=0.0)
    return optimizer


def prodigy(groups: list[ParameterGroup], learning_rate: float) -> Optimizer:
    """Prodigy (arXiv:2306.06101), which estimates the step size; the learning rate is a factor of it, usually 1.

    ConfigError if groups have different rates: the estimate is common to all of them.
    """
    if len({group["lr"] for group in groups if group["lr"]}) > 1:
        message = (
            "Negative learning rate factor (negative_lr): Prodigy uses one learning rate for both embeddings. Set it to 1, "
            "or to 0 to keep the negative embedding as it is."
        )
        raise ConfigError(message, "negative_lr")
    build = _package("prodigyopt", "prodigy").Prodigy
    optimizer: Optimizer = build(groups, learning_rate, use_bias_correction=True, safeguard_warmup=True)
    return optimizer


def sphere(groups: list[ParameterGroup], learning_rate: float) -> Optimizer:
    """Directional Textual Inversion (arXiv:2512.13672): vectors keep their norm, and the rate is an angle in radians."""
    from ti_trainer.functional.sphere import Sphere

    return Sphere(groups, learning_rate)


OPTIMIZERS: dict[str, Builder] = {"adamw": adamw, "adamw8bit": adamw_8bit, "prodigy": prodigy, "sphere": sphere}


def check_available(name: str) -> None:
    """Raise ConfigError if the package of an optimizer is not installed. Cheap enough to do before a model is loaded."""
    import torch

    OPTIMIZERS[name]([{"params": [torch.zeros(1, requires_grad=True)], "lr": 1.0}], 1.0)


def _package(package: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        message = f"Optimizer (optimizer): {name} needs the Python package {package}. Install it with: pip install {package}"
        raise ConfigError(message, "optimizer") from error
