"""What the Train panel shows when a run has ended: the result, and the buttons for what comes next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from ti_trainer.config.training import TrainConfig
from ti_trainer.errors import BusyError, ConfigError, TITrainerError
from ti_trainer.runs.early_stopping import held_out_of
from ti_trainer.runs.job import Snapshot
from ti_trainer.runs.retrain import about_longer, about_reset, longer, reset
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session
from ti_trainer.training.selection import summary
from ti_trainer.ui.downloads import file_link
from ti_trainer.ui.gradio_compat import listen
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import queue
from ti_trainer.ui.panels.runs import comparison
from ti_trainer.ui.panels.status_strip import Part
from ti_trainer.ui.render import facts, images, notice, refusal
from ti_trainer.ui.thumbnails import thumbnail_uri

FINISHED = {
    "done": "Training finished.",
    "stopped": "Training interrupted. The embedding was saved.",
    "paused": "Paused. Resume continues exactly from here.",
}
QUEUE_MORE = "ti_trainer_queue_more"
FILES = (("Loss curve", "loss"), ("Before and after", "before_after"), ("Comparison", "comparison"))


def panel(page: Page) -> dict[str, Any]:
    """Add the result and its buttons; returns the components that `parts_of` keeps up to date."""
    parts: dict[str, Any] = {"result": gr.HTML(elem_id="ti_trainer_result")}
    with gr.Column(visible=False, elem_id="ti_trainer_ended") as parts["ended"]:
        label = "Use in txt2img" if page.txt2img else "Generate with it"
        with gr.Row(elem_classes=["ti-buttons"]):
            parts["use"] = gr.Button(label, variant="primary", elem_id="ti_trainer_use")
        with gr.Row(elem_classes=["ti-buttons", "ti-next"]):
            parts["more"] = gr.Button("Train more", elem_id="ti_trainer_more")
            over = gr.Button("Start over", elem_id="ti_trainer_over")
            new = gr.Button("New embedding", elem_id="ti_trainer_new")
            parts["open_run"] = gr.Button("Open run", elem_id="ti_trainer_open_run")
            parts["compare_copies"] = gr.Button("Compare copies", elem_id="ti_trainer_ended_compare")
        message = gr.HTML(elem_id="ti_trainer_ended_message")
        parts["details"] = gr.HTML(elem_id="ti_trainer_details")
    with gr.Row(elem_classes=["ti-hidden"]):
        queue_more = gr.Button("Add to queue", elem_id=QUEUE_MORE)
    refresh = "() => { window.tiTrainerRefresh(); }"
    for button, action in ((parts["more"], train_more), (queue_more, queued_more), (over, start_over)):
        listen(listen(button.click, lambda action=action: _attempt(page, action), [], [message]).then, None, js=refresh)
    listen(new.click, None, js="() => { window.tiTrainerShow('Create embedding'); }")
    return parts


def parts_of(now: Snapshot) -> dict[str, Part]:
    """For `train_progress.parts_of`: what each component depends on, and how to make its update."""
    ended = now.status in FINISHED and now.result is not None
    state = (now.status, now.run and now.run.id, now.step * (now.status in FINISHED), now.message)
    steps = next_steps(now)
    return {
        "ended": (ended, lambda: gr.update(visible=ended)),
        "result": (state, lambda: _result(now)),
        "details": (state, lambda: _details(now)),
        "use": (ended, lambda: gr.update(interactive=ended)),
        "more": ((ended, steps), lambda: gr.update(value=f"Train {steps} more steps", interactive=ended)),
        "open_run": (now.run is not None, lambda: gr.update(interactive=now.run is not None)),
        "compare_copies": (now.run is not None, lambda: gr.update(interactive=now.run is not None)),
    }


def next_steps(now: Snapshot) -> int:
    """The number of steps that the run is offered to be continued for: as many as it had."""
    return max(1, now.result.last_step if now.result else now.max_steps)


def train_more(page: Page) -> str:
    """Continue the run for as many steps again; says how."""
    session, about = _longer(page)
    page.job.start(session)
    return about


def queued_more(page: Page) -> str:
    """Add that to the queue; says where it is and how it continues."""
    session, about = _longer(page)
    return f"{queue.add(page, session)} {about}"


def _longer(page: Page) -> tuple[Session, str]:
    now = page.job.snapshot()
    run = _run(now)
    before = TrainConfig.from_dict(run.options())
    config = longer(before, now.step, next_steps(now))
    return replace(_session(page, run), config=config, resume=run), about_longer(before, config)


def start_over(page: Page) -> str:
    """Train the embedding anew, from the text that it was created from, in a new run; says where the old files are."""
    page.refuse_if_busy("start over")
    session = _session(page, _run(page.job.snapshot()))
    copies = reset(page.host, session.name, negative=session.config.trains_negative)
    page.job.start(session)
    return about_reset(copies)


def _run(now: Snapshot) -> Run:
    if now.run is None:
        message = "There is no run to continue: start one."
        raise ConfigError(message)
    return now.run


def _session(page: Page, run: Run) -> Session:
    """A new run with the options and images of this one."""
    settings = run.settings()
    try:
        name, folder = settings["name"], Path(settings["images"])
    except (KeyError, TypeError) as error:
        message = f"The settings of {run.id} are damaged or missing: start a run with the form."
        raise ConfigError(message) from error
    return Session(page.host, name, folder, TrainConfig.from_dict(run.options()))


def _attempt(page: Page, action: Callable[[Page], str]) -> str:
    try:
        return notice("info", action(page))
    except BusyError as error:
        return refusal(error, {"Add to queue": f"press:{QUEUE_MORE}"} if action is train_more else None)
    except (TITrainerError, OSError) as error:
        return refusal(error, {"New embedding": "show:Create embedding", "Open run": "press:ti_trainer_open_run"})


def _result(now: Snapshot) -> str:
    """What came out, and where it is; of a failed run the reason."""
    if now.status == "failed":
        return notice("error", now.message)
    warning = notice("warning", now.message)
    if now.result is None or now.status not in FINISHED:
        return warning
    result = now.result
    before_after = images([(f"Step {step}", thumbnail_uri(path)) for step, path in now.before_after])
    skipped = "".join(notice("warning", f"{path.name} was skipped: {reason}") for path, reason in result.skipped)
    good = notice("good", FINISHED[now.status], result.verdict)
    files = [result.embedding_file, *filter(None, [result.negative_file])]
    return good + warning + skipped + before_after + "".join(map(file_link, files)) + comparison(result.run)


def _details(now: Snapshot) -> str:
    """Figures of a finished run, and where its other files are."""
    if now.result is None or now.status not in FINISHED:
        return ""
    result, run = now.result, now.result.run
    averaged = [copy for _, copy in run.copies(averaged=True)[-1:]]
    files = tuple((label, run.path / f"{name}.png") for label, name in FILES)
    rows = [
        *(("Moving average", copy) for copy in averaged),
        *(("Negative of the average", negative) for copy in averaged if (negative := run.negative_of(copy))),
        *((("Selected trial", selected),) if (selected := summary(result.trials)) else ()),
        ("Step", f"{result.embedding.step} of {result.last_step}" if result.verdict else result.embedding.step),
        ("Images", result.num_images),
        *((("Held out for validation", len(held_out)),) if (held_out := held_out_of(run)) else ()),
        *((label, file) for label, file in files if file.is_file()),
        ("Run folder", run.path),
    ]
    return facts(rows)
