"""The queue, beside the Train form: the runs that wait, with buttons that move, remove, retry and start them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.runs.job import Snapshot
from ti_trainer.runs.queue import QueueSnapshot
from ti_trainer.runs.queue_entry import Entry
from ti_trainer.runs.quick import QuickTraining
from ti_trainer.runs.session import Session
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels.status_strip import Part
from ti_trainer.ui.render import VERBATIM, notice, refusal
from ti_trainer.wording import encodable

ASK = "ti_trainer_queue_ask"  # a hidden text box: what a button in our HTML asks for
START, GO_ON = "Start the queue", "Go on with the queue"
TITLES = {
    "up": "Move up",
    "down": "Move down",
    "remove": "Remove",
    "retry": "Try again",
    "model": "Train with the loaded model instead",
    "replace": "Replace the existing embedding",
    "keep": "Continue and keep a copy of the file",
}
SHOW = {"Show the queue": "show:Train"}  # a way, for `render.ways_out`
REFRESH = "() => { window.tiTrainerRefresh(); }"


def panel(page: Page) -> dict[str, Any]:
    """Add the list and its buttons; returns the components that `parts_of` keeps up to date."""
    parts: dict[str, Any] = {"queue": gr.HTML(elem_id="ti_trainer_queue")}
    with gr.Row(elem_classes=["ti-buttons"]):
        parts["queue_start"] = gr.Button(START, visible=False, size="sm", elem_id="ti_trainer_queue_start")
        parts["queue_hold"] = gr.Button("Hold the queue", visible=False, size="sm", elem_id="ti_trainer_queue_hold")
    message = gr.HTML(elem_id="ti_trainer_queue_message")
    with gr.Row(elem_classes=["ti-hidden"]):
        asked = unsaved(gr.Textbox(value="", elem_id=ASK))
    done = [
        listen(asked.change, lambda text: _attempt(partial(_do, page, text)), [asked], [message]),
        listen(parts["queue_start"].click, lambda: _attempt(page.queue.start), [], [message]),
        listen(parts["queue_hold"].click, lambda: _attempt(page.queue.hold), [], [message]),
    ]
    for each in done:
        listen(each.then, None, js=REFRESH)
    return parts


def parts_of(page: Page, now: Snapshot) -> dict[str, Part]:
    """For `train_progress.parts_of`: what each component depends on, and how to make its update."""
    queue = page.queue.snapshot()
    html = render(queue, now, is_public=page.is_public)
    startable = bool(queue.waiting) and (not queue.going or queue.held == "paused")
    startable = startable and (not queue.elsewhere or queue.held == "by the user")
    label = GO_ON if queue.held else START
    can_hold = bool(queue.going or queue.elsewhere) and bool(queue.waiting) and not startable
    return {
        "queue": (html, lambda: html),
        "queue_start": ((startable, label), lambda: gr.update(visible=startable, value=label)),
        "queue_hold": (can_hold, lambda: gr.update(visible=can_hold)),
    }


def add(page: Page, run: Session | QuickTraining | Entry) -> str:
    """Add a run to the queue; says where it is and when it is started. TITrainerError if it cannot be trained."""
    place = page.queue.add(run)
    queue, now = page.queue.snapshot(), page.job.snapshot()
    when = _when(queue, now) if queue.going or place > 1 else f"Press “{START}” to train it."
    return f"Added to the queue: {run.name}, number {place}. {when}"


def render(queue: QueueSnapshot, now: Snapshot, *, is_public: bool = False) -> str:
    """Render the list; "" if there is nothing to show. Visitors of a public page may not overwrite what exists."""
    warning = notice("warning", queue.message)
    if not queue.entries:
        return warning
    items = "".join(_item(each, _ways(each, is_public=is_public)) for each in queue.entries)
    about = f'<div class="ti-subdued">{escape(_when(queue, now))}</div>' if queue.waiting else ""
    title = '<div class="ti-section-title">Queue</div>'
    return encodable(f'<div class="ti-queue">{title}<ol>{items}</ol>{about}</div>{warning}')


def _when(queue: QueueSnapshot, now: Snapshot) -> str:
    """When the next run is started."""
    if queue.held == "paused":
        return f"{queue.held_by} is paused, so the queue waits: resume that run, or press Go on to train the next one."
    if queue.held == "stopped":
        return f"{queue.held_by} was stopped, so the queue waits."
    if queue.elsewhere and not queue.held:
        return f"Another program trains the queue: the next run starts when {queue.elsewhere} has ended."
    if not queue.going:
        return f"Nothing in the queue is trained until you press “{GO_ON if queue.held else START}”."
    training = now.name if now.active else next((each.name for each in queue.entries if each.state == "running"), "")
    return f"The next run starts when {training} has ended." if training else "The next run starts in a moment."


def _ways(entry: Entry, *, is_public: bool) -> list[str]:
    """What a failed entry offers below its message."""
    if entry.state != "failed":
        return []
    if entry.option == "overwrite" and not is_public:
        return ["retry", "keep" if entry.resume else "replace"]
    return ["retry", "model"] if entry.option == "model" else ["retry"]


def _item(entry: Entry, ways: Sequence[str]) -> str:
    about = " · ".join(filter(None, (_what(entry), {"running": "training", "failed": "failed"}.get(entry.state, ""))))
    signs = {} if entry.state == "running" else {"up": "↑", "down": "↓", "remove": "✕"}
    buttons = "".join(_button(entry, action, sign) for action, sign in signs.items())
    error = notice("error", entry.message) if entry.state == "failed" else ""
    below = f'<div class="ti-ways">{"".join(_button(entry, way, TITLES[way]) for way in ways)}</div>' if ways else ""
    return (
        f'<li data-state="{entry.state}"><div class="ti-queued"><span class="ti-line" title="{escape(_details(entry))}">'
        f'<b {VERBATIM}>{escape(entry.name)}</b> <span class="ti-subdued">{escape(about)}</span></span>{buttons}</div>'
        f"{error}{below}</li>"
    )


def _what(entry: Entry) -> str:
    """What is trained, and with which model."""
    steps = f"to step {entry.max_steps}" if entry.max_steps and not entry.quick else ""
    images = "from a prompt" if entry.prompt else Path(entry.images).name
    kind = "quick training" if entry.quick else f"continues {entry.resume}" if entry.resume else ""
    parts = (kind, steps, "" if entry.resume else images, entry.about_model)
    return " · ".join(filter(None, parts))


def _details(entry: Entry) -> str:
    """All of it, as a title: the line may be cut off."""
    return f"{entry.name} · {_what(entry)} · {entry.images}"


def _button(entry: Entry, action: str, label: str) -> str:
    """A button of which javascript/ti_trainer_strip.js puts the value into the hidden text box."""
    title = f"{TITLES[action]}: {entry.name}"
    return (
        f'<button type="button" class="ti-way" title="{escape(title)}" aria-label="{escape(title)}" data-ti-ask="{ASK}" '
        f'data-ti-value="{action} {escape(entry.id)}">{label}</button>'
    )


def _do(page: Page, text: str) -> None:
    """Do what a button asked for."""
    action, _, rest = (text or "").partition(" ")
    entry_id = rest.partition(" ")[0]  # a number follows, which makes each request another text
    actions: dict[str, Callable[[], None]] = {
        "up": lambda: page.queue.file.move(entry_id, -1),
        "down": lambda: page.queue.file.move(entry_id, 1),
        "remove": lambda: page.queue.file.remove(entry_id),
        "retry": lambda: page.queue.file.try_again(entry_id),
        "model": lambda: page.queue.use_chosen_model(entry_id),
        **dict.fromkeys(("replace", "keep"), lambda: page.queue.file.try_again(entry_id, overwrite=page.overwrite(True))),
    }
    if not action:  # gradio 6 clears a text box soon after creating it
        return
    if action not in actions:
        message = f"Found {action!r:.40}, expected one of {', '.join(actions)}."
        raise ConfigError(message)
    actions[action]()


def _attempt(action: Callable[[], object]) -> str:
    """Run an action; the message if it is refused."""
    try:
        action()
    except (TITrainerError, OSError) as error:
        return refusal(error)
    return ""
