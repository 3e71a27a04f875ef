"""The status strip above the tabs: what is running, how far it is, and the buttons that pause and stop it.

It takes up the same space at all times. javascript/ti_trainer_strip.js keeps it in view while something runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from html import escape
from statistics import fmean
from typing import Any

import gradio as gr

from ti_trainer.errors import TITrainerError
from ti_trainer.preprocess import job as preprocess
from ti_trainer.runs.job import Snapshot
from ti_trainer.runs.queue import QueueSnapshot
from ti_trainer.runs.step_progress import SPEED_OVER
from ti_trainer.ui.gradio_compat import listen
from ti_trainer.ui.page import Page
from ti_trainer.ui.render import STATUS_LABELS, VERBATIM, duration, numbers, progress_bar, speed
from ti_trainer.workbench import compare_job

MESSAGES = {
    "waiting": "The model is in use. Training starts as soon as it is free.",
    "pausing": "Pausing after this step. Resume continues exactly from there.",
    "stopping": "Stopping after this step. The embedding will be saved.",
    "preview": "A preview will be generated after this step.",
    "copy": "A copy will be saved after this step, in the run's folder “embeddings”.",
}
NO_RUN = "none"  # also in javascript/ti_trainer_strip.js
ENDED = ("done", "stopped", "failed")
SHOW_RESULT = (
    ' <button type="button" class="ti-link" data-ti-show="Train" data-ti-at="#ti_trainer_result">Show result</button>'
)
Part = tuple[Any, Callable[[], Any]]  # what a component depends on, and a function that makes its update


def panel(page: Page) -> dict[str, Any]:
    """Add the strip; returns the components that `parts_of` keeps up to date."""
    actions = {
        "pause": ("Pause", page.job.pause),
        "resume": ("Resume", page.job.resume),
        "stop": ("Stop", lambda: _stop(page)),
    }
    with gr.Row(elem_id="ti_trainer_strip", elem_classes=["ti-strip"]):
        parts = {"bar": gr.HTML(render("idle"), elem_id="ti_trainer_progress")}
        for name, (label, action) in actions.items():
            parts[name] = gr.Button(label, size="sm", visible=False, elem_id=f"ti_trainer_{name}")
            listen(parts[name].click, action)
    return parts


def _stop(page: Page) -> None:
    """Stop what the strip shows."""
    if page.quick.preparing:
        page.quick.stop()
        return
    jobs = (page.job, page.comparing, page.preprocessing)
    next((each for each in jobs if each.snapshot().active), page.preprocessing).stop()


def parts_of(page: Page, now: Snapshot) -> dict[str, Part]:
    """For `train_progress.parts_of`: what each component of the strip depends on, and how to make its update."""
    working, comparing = page.preprocessing.snapshot(), page.comparing.snapshot()
    other = None if now.active else comparing if comparing.active else working if working.active else None
    preparing = page.quick.preparing and not now.active and other is None
    if preparing:
        bar = render("working", page.quick.snapshot().name, message="Preparing the images and the embedding.", run=NO_RUN)
    elif isinstance(other, compare_job.Snapshot):
        bar = _of_comparison(other)
    else:
        bar = _of_training(page, now) if other is None else _of_preprocessing(other)
    buttons = {
        "pause": (now.active, now.status not in ("pausing", "stopping")),
        "resume": (now.status in ("paused", "stopped") and now.run is not None and other is None and not preparing, True),
        "stop": (
            now.active or other is not None or preparing,
            preparing or (other or now).status not in ("pausing", "stopping"),
        ),
    }
    parts: dict[str, Part] = {"bar": (bar, lambda: bar)}
    for name, (visible, interactive) in buttons.items():
        update = gr.update(visible=visible, interactive=interactive)
        parts[name] = ((visible, interactive), partial(dict, update))
    return parts


def render(status: str, name: str = "", percent: float = 0.0, line: str = "", message: str = "", run: str = "") -> str:
    """Render the strip's text and bar; `line` is HTML. The scripts read `data-status`, and `data-run`: a run's id or NO_RUN.

    Each text has an element of its own, since localizations replace whole text nodes.
    """
    label = f"<span>{STATUS_LABELS[status]}</span>"
    if message:
        model = ". <span>Model</span>" if status == "idle" else ""
        label += f"{model}: <span>{escape(message)}</span>"
    percent = 100.0 if status == "done" else percent  # a run may be done before its last step
    return (
        f'<div class="ti-progress" data-status="{escape(status)}" data-run="{escape(run)}">'
        f'<div class="ti-line" title="{escape(message)}"><b {VERBATIM}>{escape(name)}</b> '
        f'<span class="ti-status">{label}</span>{SHOW_RESULT if status in ENDED else ""}</div>'
        f'<div class="ti-line ti-numbers">{line or "&nbsp;"}</div>{progress_bar(percent)}</div>'
    )


def _of_preprocessing(now: preprocess.Snapshot) -> str:
    line = numbers(("", f"{now.done} / {now.total}" if now.total else ""), ("time left", duration(now.seconds_left)))
    message = "Finishing the images in progress." if now.status == "stopping" else ""
    name = now.work.destination.name if now.work else ""
    return render(now.status, name, 100 * now.done / (now.total or 1), line, message, NO_RUN)


def _of_comparison(now: compare_job.Snapshot) -> str:
    line = numbers(("", f"{now.done} / {now.total}"), ("time left", duration(now.seconds_left)))
    name, percent = now.work.title if now.work else "", 100 * now.done / (now.total or 1)
    return render(now.status, name, percent, line, about_comparison(now), NO_RUN)


def about_comparison(now: compare_job.Snapshot) -> str:
    """What a comparison is doing, where its numbers do not say it."""
    if now.status == "stopping":
        return "Finishing the image in progress."
    if now.active and now.folder is None:
        return "Waiting for the model."
    return "Measuring the similarity." if now.active and now.what == "similarity" else ""


def _of_training(page: Page, now: Snapshot) -> str:
    queued = in_queue(page.queue.snapshot())
    if now.status == "idle":
        return render("idle", message=". ".join(filter(None, (_model(page), queued))))
    left = duration(now.seconds_left) if now.status == "training" else ""
    latest = [loss for _, loss in now.loss[-SPEED_OVER:]]  # a single loss depends on its image and timestep
    line = numbers(
        ("", f"{now.step} / {now.max_steps}" if now.max_steps else ""),
        ("time left", left),
        ("loss", f"{fmean(latest):.3f}" if latest else ""),
        ("", speed(now.steps_per_second) if now.active else ""),
        ("epoch", str(now.epoch) if now.step else ""),
        ("", queued),
    )
    percent = 100 * min(1.0, now.step / now.max_steps) if now.max_steps else 0.0
    run = now.run.id if now.run else ""
    return render(now.status, now.name, percent, line, message_of(now), run)


def in_queue(queue: QueueSnapshot) -> str:
    """How many runs wait; "" for none."""
    if not queue.waiting:
        return ""
    return f"{queue.waiting} {'more' if queue.going and not queue.held else 'waiting'} in the queue"


def _model(page: Page) -> str:
    try:
        return page.host.describe()
    except TITrainerError:  # the Train panel shows the reason
        return ""


def message_of(now: Snapshot) -> str:
    """What a run is doing, where its status alone does not say it."""
    if now.status == "loading" and now.generated[0] < now.generated[1]:
        return f"Generating image {now.generated[0] + 1} of {now.generated[1]}, to learn from"
    if now.status == "loading" and now.loaded[1]:
        return f"Loading image {now.loaded[0]} of {now.loaded[1]}"
    if now.status in ("stopping", "pausing") and not now.step:
        return "The run ends before its first step; the embedding is unchanged."
    if now.status == "training" and now.compiling:
        return "Compiling the U-Net for images of this size: this step takes a minute or more."
    if now.status == "training" and now.fitting:
        return "The vectors are fitted to the prompt before the first step."
    if now.status == "training" and not now.loss:
        return "A first preview is generated before training starts."
    return MESSAGES.get(now.requested[-1] if now.requested else now.status, "")
