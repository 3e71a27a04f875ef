"""JSON that people wrote: an object, in which no key stands twice. Knows nothing of options."""

from __future__ import annotations

import json
from typing import Any

_KINDS = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false", type(None): "null"}


def object_of(content: str | bytes) -> dict[str, Any]:
    """The object in a text or file, whatever Unicode encoding the file is in; ValueError, in words, if there is none."""
    try:
        found = json.loads(content, object_pairs_hook=_once)
    except RecursionError as error:
        message = "it is nested too deeply"
        raise ValueError(message) from error
    except UnicodeDecodeError as error:
        message = "it is not text in UTF-8"
        raise ValueError(message) from error
    return as_object(found)


def as_object(found: Any) -> dict[str, Any]:
    """The same, if it is an object; else ValueError."""
    if not isinstance(found, dict):
        message = f'found {_KINDS[type(found)]}, expected an object such as {{"max_steps": 300}}'
        raise ValueError(message)  # noqa: TRY004 - of what was read, not of our code
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        message = f"{', '.join(sorted({repr(key) for key in keys if keys.count(key) > 1}))} stands there more than once"
        raise ValueError(message)
    return found
