"""The Quick train panel, right side: what each stage did, with a button that opens the tab to change it by hand."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from ti_trainer.runs.quick_job import QuickSnapshot
from ti_trainer.runs.quick_stages import STAGES, Stage
from ti_trainer.ui.page import Page
from ti_trainer.ui.render import duration, images, notice, progress_bar
from ti_trainer.ui.thumbnails import thumbnail_uri

MARKS = {"waiting": "○", "running": "●", "done": "✓", "stopped": "‖", "failed": "✕"}
TABS = {  # where a stage is done by hand: the tab, the tab inside of it, and the button that loads the dataset there
    "images": ("Preprocess", "Image quality", "ti_trainer_quality_start"),
    "dataset": ("Preprocess", "Edit captions", "ti_trainer_captions_load"),
    "embedding": ("Create embedding", "", ""),
    "training": ("Train", "", ""),
    "result": ("Runs", "", ""),
}
WAITING = {  # what a stage will do
    "images": "Leave out duplicates and blank images.",
    "dataset": "Turn upright, crop to the model's size, and add captions where possible.",
    "embedding": "Create the vectors, starting from similar words.",
    "training": "Train until it no longer improves, with the options on the Train tab.",
    "result": "Compare before and after.",
}


def parts_of(page: Page) -> dict[str, tuple[Any, Any]]:
    """For `train_progress.parts_of`: what each live component depends on, and how to make its update."""
    now = page.quick.snapshot()
    html = stages(now)
    finished = now.stages[-1].status == "done"
    return {
        "quick_stages": ((html, len(now.run.previews) if now.run else 0), lambda: html + before_after(now)),
        "quick_stop": (now.active, lambda: gr.update(interactive=now.active)),
        "quick_compare": (finished, lambda: gr.update(interactive=finished)),
        "quick_use": (finished, lambda: gr.update(interactive=finished, variant="primary" if finished else "secondary")),
    }


def stages(now: QuickSnapshot) -> str:
    """Render the stages as a list."""
    left = duration(now.run.seconds_left) if now.run and now.run.status == "training" else ""
    items = "".join(
        _item(stage, f" About {left} left." if left and stage.name == "training" else "") for stage in now.stages
    )
    return f'<ol class="ti-stages" data-status="{"working" if now.active else "idle"}">{items}</ol>'


def before_after(now: QuickSnapshot) -> str:
    """Previews of a finished run: the first one, and that of the result."""
    if now.run is None or now.run.active:
        return ""
    return images([(f"Step {step}", thumbnail_uri(path)) for step, path in now.run.before_after])


def _item(stage: Stage, more: str) -> str:
    tab, inner, load = TABS[stage.name]
    then = f' data-ti-inner="{inner}" data-ti-then="{load}"' if inner else ""
    by_hand = f'<button type="button" title="Change this by hand" data-ti-show="{tab}"{then}>{inner or tab}</button>'
    done, total = stage.progress
    if stage.name != "training" and total:
        more = f" {done} of {total} images."
    is_failed = stage.status == "failed"
    text = WAITING[stage.name] if stage.status == "waiting" else ("" if is_failed else stage.text) + more
    warnings = "".join(notice("warning", each) for each in stage.warnings)
    return (
        f'<li data-stage="{stage.name}" data-state="{stage.status}">'
        f'<div class="ti-stage"><i aria-hidden="true">{MARKS[stage.status]}</i><b>{STAGES[stage.name]}</b>'
        f'<span class="ti-subdued">{stage.status}</span>{"" if stage.status == "waiting" else by_hand}</div>'
        f'<div class="ti-stage-text">{escape(text.strip())}</div>{_bar(stage)}'
        f"{notice('error', stage.text) if is_failed else ''}{warnings}</li>"
    )


def _bar(stage: Stage) -> str:
    done, total = stage.progress
    if stage.status != "running" or not total:
        return ""
    return progress_bar(100 * min(1.0, done / total))
