"""Parse JSON objects that people wrote, refusing duplicate keys."""

from __future__ import annotations

import json
from typing import Any

_KINDS = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false", type(None): "null"}


def object_of(content: str | bytes) -> dict[str, Any]:
    """Parse a JSON object in any Unicode encoding; ValueError, with a message for users, if the content is not one."""
    try:
        found = json.loads(content, object_pairs_hook=_without_duplicates)
    except RecursionError as error:
        message = "it is nested too deeply"
        raise ValueError(message) from error
    except UnicodeDecodeError as error:
        message = "it is not text in UTF-8"
        raise ValueError(message) from error
    return as_object(found)


def as_object(found: Any) -> dict[str, Any]:
    """Return the value if it is an object; else ValueError."""
    if not isinstance(found, dict):
        message = f'found {_KINDS[type(found)]}, expected an object such as {{"max_steps": 300}}'
        raise ValueError(message)  # noqa: TRY004 - the value was read from a file, it is not a caller's mistake
    return found


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        duplicates = ", ".join(sorted({repr(key) for key in keys if keys.count(key) > 1}))
        message = f"{duplicates} appears more than once"
        raise ValueError(message)
    return found
