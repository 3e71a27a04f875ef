"""Checks of the config.json files of networks before transformers and diffusers read them.

Both libraries download or run what such a file names: it must not ask for other code, nor for an absurd size.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LARGEST_FILE = 2**24  # bytes
MOST_LAYERS, MOST_LABELS = 200, 100_000
ATTENTION = (None, "eager", "sdpa")  # transformers 5 downloads and runs other names as kernels
# Each leads to other weights, another config, or missing packages. `auto_map` and `custom_pipelines` have no effect in our
# calls, since none of them trusts remote code.
REFUSED = (
    "quantization_config",
    "trust_remote_code",
    "configuration_files",
    "transformers_weights",
    "use_pretrained_backbone",
)
ADAPTER = "adapter_config.json"  # with peft, transformers loads the model that it names instead
_COUNTS = re.compile(r"layers|depth|repeats|stages|blocks|num_(labels|classes)$")
_offline = threading.RLock()


def read(file: Path) -> dict[str, Any]:
    """The settings in a file; ValueError if they are not allowed, OSError if it cannot be read."""
    where = f"{file.parent.name}/{file.name}"
    if file.stat().st_size > LARGEST_FILE:
        message = f"{where} is larger than {LARGEST_FILE:,} bytes."
        raise ValueError(message)
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(settings, dict):
            _check(settings)
    except (ValueError, RecursionError) as error:
        message = f"{where} cannot be used: {str(error).rstrip('.')}."
        raise ValueError(message) from error
    if not isinstance(settings, dict):
        message = f"{where} holds {type(settings).__name__}, expected an object of settings."
        raise ValueError(message)  # noqa: TRY004 - it is the file's content
    if (file.parent / ADAPTER).exists():
        message = f"{file.parent.name} has an {ADAPTER}: it is an adapter, not a model."
        raise ValueError(message)
    return settings


@contextmanager
def offline() -> Iterator[None]:
    """Keep huggingface_hub offline in this block, whatever the environment says, and restore its setting afterwards."""
    from huggingface_hub import constants

    with _offline:  # loads in two threads must not restore each other's setting
        before = constants.HF_HUB_OFFLINE
        try:
            _switch_offline(True)
            yield
        finally:
            _switch_offline(before)


def _switch_offline(on: bool) -> None:
    from huggingface_hub import constants, utils

    constants.HF_HUB_OFFLINE = on
    if hasattr(utils, "reset_sessions"):  # before 1.0, a session kept the setting from when it was created
        utils.reset_sessions()


def _check(value: object, name: str = "") -> None:
    """ValueError for settings that are not allowed, at any depth."""
    if isinstance(value, dict):
        for key, each in value.items():
            _check_setting(key, each)
            _check(each, key)
    elif isinstance(value, list):
        for each in value:
            _check(each, name)
    elif isinstance(value, int | float) and not isinstance(value, bool) and _COUNTS.search(name):
        most = MOST_LABELS if name.startswith("num_") and name.endswith(("labels", "classes")) else MOST_LAYERS
        if not 0 <= value <= most:
            message = f"{name} is {value}, expected 0 to {most:,}"
            raise ValueError(message)


def _check_setting(name: str, value: object) -> None:
    if name.endswith(("_implementation", "_implementation_internal")) and not _is_own_attention(value):
        message = f"it asks for {name} {value!r:.100}, which can be code from elsewhere; expected none, eager or sdpa"
        raise ValueError(message)
    if name in REFUSED and value not in (None, False):
        message = f"it asks for {name}, which is not supported"
        raise ValueError(message)


def _is_own_attention(value: object) -> bool:
    """Whether it is a built-in implementation, or one for each part of the network."""
    if isinstance(value, dict):
        return all(_is_own_attention(each) for each in value.values())
    return value is None or (isinstance(value, str) and value in ATTENTION)
