"""Words for people. Knows no page and no command."""

from __future__ import annotations


def counted(count: int, what: str) -> str:
    """'1 picture', '2 pictures'; `what` is a noun that takes an s."""
    return f"{count} {what}{'' if count == 1 else 's'}"
