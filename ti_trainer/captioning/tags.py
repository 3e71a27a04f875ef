"""Tags written as a caption has them, and what becomes of a caption that there is. Knows nothing of what finds tags."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from ti_trainer.config.preprocessing import PreprocessConfig

Tags = list[tuple[str, float]]  # each with how sure it is, in [0, 1]
Captioner = Callable[[Image.Image], "str | Tags"]  # of an RGB image, held upright: a sentence, or tags


@dataclass(frozen=True)
class HostCaptioner:
    """Something of the host's own that says what is in an image: what people see, and what opens it for a while.

    `open` waits for the host's turn by itself, at each image again: call it outside of `Host.lock`. It raises ConfigError.
    """

    label: str
    open: Callable[[PreprocessConfig], AbstractContextManager[Captioner]]


def written(tags: Tags, config: PreprocessConfig) -> str:
    """The tags in the order, and in the way, that the options say, joined by ", "; each once, and none that is excluded."""
    unwanted = {key(each) for each in config.tag_exclude.split(",")}
    wanted = {}
    for tag, _ in sorted(tags, key=lambda each: -each[1]):
        if key(tag) not in unwanted:
            wanted.setdefault(key(tag), _spelled(tag, config))
    return ", ".join(sorted(wanted.values()) if config.tag_order == "alphabetical" else wanted.values())


def merged(existing: str | None, new: str, action: Literal["ignore", "copy", "prepend", "append"]) -> str:
    """The caption of an image that had one already, or None: see the option `existing_captions`."""
    parts = {"ignore": (new,), "copy": (existing or new,), "prepend": (existing, new), "append": (new, existing)}[action]
    return ", ".join(filter(None, ((each or "").strip(", \t\r\n") for each in parts)))


def key(tag: str) -> str:
    """The same for every way in which a tag may be written."""
    return tag.replace("\\", "").replace("_", " ").strip().lower()


def _spelled(tag: str, config: PreprocessConfig) -> str:
    if config.tag_spaces and re.search(r"[^\W\d_]{2}", tag):  # two letters in a row: a word, and not a face such as o_o
        tag = tag.replace("_", " ")
    return re.sub(r"([()\\])", r"\\\1", tag) if config.tag_escape else tag
