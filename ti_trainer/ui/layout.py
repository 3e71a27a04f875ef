"""All panels on one page, and what one panel does to another. The caller serves it, or the host puts it into its tab."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import gradio as gr

from ti_trainer.config.training import TrainConfig
from ti_trainer.embedding import negative_name, unwanted, word_pattern
from ti_trainer.prompts import escaped
from ti_trainer.runs.job import Snapshot
from ti_trainer.ui import api
from ti_trainer.ui.gradio_compat import blocks, listen
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import (
    caption_editor,
    create,
    generate,
    image_quality,
    mask_brush,
    preflight,
    preprocess,
    runs,
    train,
    train_progress,
)
from ti_trainer.ui.panels.runs import label_of, labels
from ti_trainer.ui.polling import poll

TO_TXT2IMG = "() => { window.switch_to_txt2img && switch_to_txt2img(); }"
NOW = "() => { window.tiTrainerNow(); }"  # asks for news at once
# A tab's button by its words: gradio's own ways to choose a tab differ from version to version.
TO_TAB = "() => {{ window.tiTrainerShow('{}'); }}"


def build(page: Page) -> gr.Blocks:
    """The page."""
    with blocks("TI Trainer") as made, gr.Column(elem_classes=["ti-trainer"]):
        with gr.Tabs(elem_id="ti_trainer_tabs", selected="train" if page.prefilled else "create"):
            with gr.Tab("Create embedding", id="create"):
                created = create.panel(page)
            with gr.Tab("Preprocess", id="preprocess"), gr.Tabs(elem_id="ti_trainer_preprocess_tabs"):
                with gr.Tab("Make a dataset", id="make"):
                    made_set = preprocess.panel(page)
                with gr.Tab("Edit captions", id="captions"):
                    editor = caption_editor.panel(page)
                with gr.Tab("Check images", id="check"):
                    checked = image_quality.panel(page)
                with gr.Tab("Paint masks", id="masks"):
                    masked = mask_brush.panel(page)
            with gr.Tab("Train", id="train"), gr.Row(elem_classes=["ti-columns"]):
                with gr.Column(elem_classes=["ti-form"]):
                    form = train.panel(page)
                with gr.Column(elem_classes=["ti-results"]):
                    look = preflight.panel(form)
                    seen = train_progress.panel(page)
            with gr.Tab("Runs", id="runs"):
                shelf = runs.panel(page)
            if not page.txt2img:
                with gr.Tab("Generate", id="generate"):
                    drawing = generate.panel(page)
        kept = {
            **seen.components,
            **made_set.parts,
            "names": form.name,
            "presets": form.presets.preset,
            "runs": shelf.chosen,
        }
        poll(lambda told: train_progress.news(page, told, list(kept)), list(kept.values()))
        api.panel(page)
        create.wire(page, created, form.name)
        begun = listen(form.start.click, lambda *given: train.start(form, *given), form.inputs, [form.said, *form.errors])
        listen(begun.then, lambda: gr.update(visible=False), [], [look], js=NOW)
        listen(shelf.continued.then, None, js=NOW)
        listen(made_set.begun.then, None, js=NOW)
        preprocess.lead_on(made_set, form, (editor.folder, checked.folder), masked, TO_TAB)
        _used(page, seen, page.txt2img or drawing.fields)
        listen(seen["open_run"].click, lambda: _opened(page), [], [shelf.chosen], js=TO_TAB.format("Runs"))
    return made


def _used(page: Page, seen: train_progress.Watch, fields: Mapping[str, Any]) -> None:
    """The word in a prompt that people can go on with, and what a DreamArtist run wants besides."""
    names = ("preview_prompt", "preview_negative_prompt", "preview_cfg_scale")
    wanted = [fields[name] for name in names if name in fields]
    earlier = gr.State(("", ""))  # of this visitor: the word that was put in, and what it brought for the negative prompt

    def add(before: tuple[str, str], *given: Any) -> list[Any]:
        values = dict(zip((name for name in names if name in fields), given, strict=True))
        now = page.job.snapshot()
        if values.get("preview_prompt") == generate.proposed(page):
            values["preview_prompt"] = generate.proposed(page, now.name)
        used, ours = used_after(before, now, values)
        return [ours, *(used[name] for name in values)]

    js = TO_TXT2IMG if page.txt2img else TO_TAB.format("Generate")
    listen(listen(seen["use"].click, add, [earlier, *wanted], [earlier, *wanted]).then, None, js=js)


def used_after(before: tuple[str, str], now: Snapshot, values: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, str]]:
    """`with_word`, the run's word in the place of the one that was put in `before`; and what is ours of that now.

    Ours are a word, and what it brought for the negative prompt. Where the prompt says the run's word already, somebody
    has put both there, and both stay.
    """
    (word, added), name = before, now.name
    prompt, negative = (values.get(f"preview_{kind}prompt") or "" for kind in ("", "negative_"))
    if word and word != name and _says(prompt, word) and not _says(prompt, name):
        if _config(now).negative:
            negative, added = (_put(each, negative_name(word), negative_name(name)) for each in (negative, added))
        else:
            negative, added = _without(negative, added, negative_name(word)), ""
        values = {**values, "preview_prompt": _put(prompt, word, name)}
        if "preview_negative_prompt" in values:
            values["preview_negative_prompt"] = negative
    used = with_word(now, values)
    brought = (used.get("preview_negative_prompt") or "").removesuffix(negative).rstrip(", ")
    return used, (name, brought or added)


def _without(negative: str, added: str, word: str) -> str:
    """A negative prompt without what was added to it; where that was changed since, without its parts that say the word."""
    if added and negative.startswith(added):
        return negative.removeprefix(added).lstrip(" ,")
    parts = negative.split(",")
    kept = [each for each in parts if not _says(each, word) or each.count("(") != each.count(")")]
    return negative if kept == parts else ",".join(kept).lstrip()


def _put(text: str, word: str, other: str) -> str:
    return re.sub(word_pattern(word), lambda _: escaped(other), text)


def with_word(now: Snapshot, values: Mapping[str, Any]) -> dict[str, Any]:
    """Entries, by the options of previews that say the same, with a run's word in the prompt.

    After DreamArtist they are as in its previews: the prompt once more as negative prompt, at the scale of training.
    """
    prompt, negative = (values.get(f"preview_{kind}prompt") or "" for kind in ("", "negative_"))
    if not _says(prompt, now.name):
        prompt = _joined(prompt, f"a photo of {escaped(now.name)}")
    config = _config(now)
    if not config.negative:
        return {**values, "preview_prompt": prompt}
    if not _says(negative, negative_name(now.name)):
        negative = _joined(unwanted(prompt, now.name), negative)
    scale = max(1.0, config.guidance_scale.high)  # where sliders begin
    return {**values, "preview_prompt": prompt, "preview_negative_prompt": negative, "preview_cfg_scale": scale}


def _config(now: Snapshot) -> TrainConfig:
    return TrainConfig.from_dict(now.run.settings().get("train", {})) if now.run else TrainConfig()


def _says(text: str, word: str) -> bool:
    return re.search(word_pattern(word), text) is not None


def _joined(*texts: str) -> str:
    return ", ".join(filter(None, texts))


def _opened(page: Page) -> Any:
    run = page.job.snapshot().run
    return gr.update(choices=labels(page), value=label_of(run) if run else None)
