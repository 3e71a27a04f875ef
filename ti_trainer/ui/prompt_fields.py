"""Put a run's embedding into the prompts of a host's txt2img tab or of the Generate panel: pure functions of values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ti_trainer.config.training import TrainConfig
from ti_trainer.embedding import dreamartist_name, negative_name, unwanted, word_pattern
from ti_trainer.prompts import escaped
from ti_trainer.runs.job import Snapshot

Inserted = tuple[str, str]  # the name that was put into the prompt, and what was added to the negative prompt for it
NOTHING: Inserted = ("", "")
NEGATIVE_ENDINGS = tuple(ending("") for ending in (negative_name, dreamartist_name))


def replace_embedding(before: Inserted, now: Snapshot, values: Mapping[str, Any]) -> tuple[dict[str, Any], Inserted]:
    """`add_embedding`, which first replaces the embedding inserted before; returns the values and what is inserted now.

    If the prompt already contains the run's name, the user has put both names there, and both stay.
    """
    (old, added), name = before, now.name
    prompt, negative = (values.get(f"preview_{kind}prompt") or "" for kind in ("", "negative_"))
    if old and old != name and _contains(prompt, old) and not _contains(prompt, name):
        if _config(now).trains_negative:
            negative, added = (_renamed(each, negative_name(old), negative_name(name)) for each in (negative, added))
        else:
            negative, added = _without(negative, added, negative_name(old)), ""
        values = {**values, "preview_prompt": _renamed(prompt, old, name)}
        if "preview_negative_prompt" in values:
            values["preview_negative_prompt"] = negative
    result = add_embedding(now, values)
    new = (result.get("preview_negative_prompt") or "").removesuffix(negative).rstrip(", ")
    return result, (name, new or added)


def add_embedding(now: Snapshot, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, keyed by option of previews, with the run's name in the prompt.

    After a DreamArtist run they match its previews: the prompt with the negative embedding as negative prompt, at the
    guidance scale of the training. A negative embedding that learned from a prompt is added to the negative prompt.
    """
    prompt, negative = (values.get(f"preview_{kind}prompt") or "" for kind in ("", "negative_"))
    if not _contains(prompt, now.name):
        prompt = _joined(prompt, f"a photo of {escaped(now.name)}")
    config = _config(now)
    if not config.trains_negative:
        return {**values, "preview_prompt": prompt}
    if not _contains(negative, negative_name(now.name)):
        added = unwanted(prompt, now.name) if config.negative else escaped(negative_name(now.name))
        negative = _joined(added, negative)
    values = {**values, "preview_prompt": prompt, "preview_negative_prompt": negative}
    if not config.negative:
        return values
    scale = max(1.0, config.guidance_scale.high)  # sliders start at 1
    return {**values, "preview_cfg_scale": scale}


def with_name(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with an embedding's name in the prompt; that of a negative embedding in the negative prompt."""
    is_negative = "negative" in name.casefold() or name.casefold().endswith(NEGATIVE_ENDINGS)
    field = "preview_negative_prompt" if is_negative and "preview_negative_prompt" in values else "preview_prompt"
    text = values.get(field) or ""
    return dict(values) if _contains(text, name) else {**values, field: _joined(text, escaped(name))}


def _without(negative: str, added: str, name: str) -> str:
    """Remove what was added to a negative prompt; if that was edited since, only the parts that contain the name."""
    if added and negative.startswith(added):
        return negative.removeprefix(added).lstrip(" ,")
    parts = negative.split(",")
    kept = [each for each in parts if not _contains(each, name) or each.count("(") != each.count(")")]
    return negative if kept == parts else ",".join(kept).lstrip()


def _renamed(text: str, old: str, new: str) -> str:
    return re.sub(word_pattern(old), lambda _: escaped(new), text)


def _config(now: Snapshot) -> TrainConfig:
    return TrainConfig.from_dict(now.run.settings().get("train", {})) if now.run else TrainConfig()


def _contains(text: str, name: str) -> bool:
    return re.search(word_pattern(name), text) is not None


def _joined(*texts: str) -> str:
    return ", ".join(filter(None, texts))
