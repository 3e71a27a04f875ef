"""Format tags as a caption, and merge a new caption with an existing one."""

from __future__ import annotations

import re
from typing import Literal

from ti_trainer.captioning.captioner import Tags
from ti_trainer.config.preprocessing import PreprocessConfig


def tags_text(tags: Tags, config: PreprocessConfig) -> str:
    """Join tags with ", ", sorted and spelled as the options say, without duplicates and excluded tags."""
    unwanted = {key(each) for each in config.tag_exclude.split(",")}
    wanted: dict[str, str] = {}
    for tag, _ in sorted(tags, key=lambda each: -each[1]):
        if key(tag) not in unwanted:
            wanted.setdefault(key(tag), _spelled(tag, config))
    return ", ".join(sorted(wanted.values()) if config.tag_order == "alphabetical" else wanted.values())


def merged(existing: str | None, new: str, action: Literal["ignore", "copy", "prepend", "append"]) -> str:
    """Merge the new caption of an image with its existing one, if any: see the option `existing_captions`."""
    parts = {"ignore": (new,), "copy": (existing or new,), "prepend": (existing, new), "append": (new, existing)}[action]
    return ", ".join(filter(None, ((each or "").strip(", \t\r\n") for each in parts)))


def key(tag: str) -> str:
    """The same text for all spellings of a tag, for comparisons."""
    return tag.replace("\\", "").replace("_", " ").strip().lower()


def _spelled(tag: str, config: PreprocessConfig) -> str:
    if config.tag_spaces and re.search(r"[^\W\d_]{2}", tag):  # two letters in a row make a word; o_o is a face
        tag = tag.replace("_", " ")
    return re.sub(r"([()\\])", r"\\\1", tag) if config.tag_escape else tag
