"""The Train panel, right side: the run's losses, previews and result. The same for every visitor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from ti_trainer.config import presets
from ti_trainer.errors import TITrainerError
from ti_trainer.runs.job import Snapshot
from ti_trainer.runs.live_curve import Series
from ti_trainer.runs.loss_curve import svg
from ti_trainer.ui.gradio_compat import listen
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import compare_progress, preprocess_progress, queue, quick_progress, status_strip, train_result
from ti_trainer.ui.panels.preset_row import names
from ti_trainer.ui.panels.run_notes import labels
from ti_trainer.ui.panels.status_strip import Part
from ti_trainer.ui.panels.train import trainable
from ti_trainer.ui.panels.train_result import FINISHED
from ti_trainer.ui.render import facts, notice, refusal
from ti_trainer.ui.thumbnails import gallery

NONE_YET = "none yet"
# The HTML that changes with every step, and the curve: javascript/ti_trainer_live.js replaces what is inside the elements.
LIVE = frozenset({"bar", "prompt", "quick_stages", "preprocess_bar", "compare_bar"})
CURVE = "losses"
MAX_PREVIEWS = 8  # shown at once
SAME_SEED = '<div class="ti-line ti-subdued">Previews, all with the same seed</div>'


@dataclass(frozen=True)
class TrainProgress:
    """The panel's components by name: those that `refresh` keeps up to date, and the two buttons that lead elsewhere."""

    components: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        """One of the components."""
        return self.components[name]


def panel(page: Page) -> TrainProgress:
    """Add the buttons, the loss curve, previews and the result."""
    parts = {"model": gr.HTML(elem_id="ti_trainer_model")}
    actions = {
        "preview": ("Preview now", page.job.draw_preview),
        "copy": ("Save a copy", page.job.save_copy),
    }
    with gr.Row(elem_classes=["ti-buttons"]):
        for name, (label, _) in actions.items():
            parts[name] = gr.Button(label, interactive=False, size="sm", elem_id=f"ti_trainer_{name}")
    message = gr.HTML(elem_id="ti_trainer_message")
    parts |= train_result.panel(page)
    parts["changes"] = gr.HTML(elem_classes=["ti-hidden"])
    parts["losses"] = gr.HTML(svg([]), elem_id="ti_trainer_curve")
    parts["prompt"] = gr.HTML(facts(_details(Snapshot()), ours=[NONE_YET]), elem_id="ti_trainer_prompt")
    gr.HTML(SAME_SEED)
    parts["previews"] = gr.Gallery(
        show_label=False, columns=4, height=300, object_fit="contain", elem_id="ti_trainer_previews"
    )
    for name, (_, action) in actions.items():
        listen(parts[name].click, lambda action=action: _attempt(action), [], [message])
    return TrainProgress(parts)


def refresh(page: Page, state: str, wanted: list[str]) -> list[Any]:
    """For `poll`: updates of those `wanted` components that have changed since `state`, what the page was last sent."""
    before = json.loads(state) if state.startswith("{") else {}
    parts = parts_of(page, now := page.job.snapshot())
    hashes = {name: hashed(parts[name][0]) for name in wanted}
    is_last = now.status not in FINISHED or before.get("bar") == hashes["bar"]
    if now.status in FINISHED and is_last:
        hashes["previews"] += ", again"  # on a busy machine gradio 6's gallery misses a run's last image: send it twice
    updates = [_update(name, parts) if before.get(name) != hashes[name] else gr.update() for name in wanted]
    return [json.dumps({**hashes, "version": fingerprint(parts) if is_last else "incomplete"}), *updates]


def fingerprint(parts: dict[str, Part]) -> str:
    """A hash of everything that is shown, and after a - one of what is live; the scripts compare it with their own."""
    live = sorted(parts.keys() & {*LIVE, CURVE})
    others = sorted(parts.keys() - {*live})
    return "-".join(hashed([(name, parts[name][0]) for name in names]) for names in (others, live))


def series_of(now: Snapshot) -> Series:
    """What the loss curve is drawn from."""
    return Series(now.run and now.run.id, now.loss, now.rates, now.validation, now.max_steps)


def _update(name: str, parts: dict[str, Part]) -> Any:
    """The update of a component; what the script replaces is in an element that it finds."""
    update = parts[name][1]()
    return f'<div class="ti-live" data-ti-live="{name}">{update}</div>' if name in LIVE or name == CURVE else update


def hashed(value: Any) -> str:
    """A short hash of what a component depends on."""
    return hashlib.sha1(repr(value).encode(), usedforsecurity=False).hexdigest()[:8]


def parts_of(page: Page, now: Snapshot) -> dict[str, Part]:
    """For each live component, lists in other panels included: what it depends on, and how to make its update."""
    run, model = now.run and now.run.id, _model(page)
    # Only once the last preview exists.
    changes = "" if now.active else f'<i data-changes="{escape(json.dumps(page.changes()))}"></i>'
    parts: dict[str, Part] = {
        "model": (model, lambda: model),
        CURVE: (
            (run, now.active, len(now.loss), len(now.validation)),
            lambda: page.curve.svg(series_of(now), active=now.active),
        ),
        "prompt": ((now.prompt, now.computing, now.best_step), lambda: facts(_details(now), ours=[NONE_YET])),
        "previews": ([str(path) for _, path in now.previews], lambda: gr.update(value=gallery(now.previews, MAX_PREVIEWS))),
        "changes": (changes, lambda: changes),
        "names": ("", lambda: gr.update(choices=trainable(page))),
        "presets": (presets.saved(page.presets_dir), lambda: gr.update(choices=names(page))),
        "runs": ((run, now.status), lambda: gr.update(choices=labels(page))),
    }
    parts |= {**status_strip.parts_of(page, now), **train_result.parts_of(now), **queue.parts_of(page, now)}
    parts |= {**preprocess_progress.parts_of(page), **quick_progress.parts_of(page), **compare_progress.parts_of(page)}
    parts["compare_runs"] = parts["runs"]
    return parts | {name: (on, lambda on=on: gr.update(interactive=on)) for name, on in _enabled(now).items()}


def _details(now: Snapshot) -> list[tuple[str, str]]:
    """What is known about a run while it is active; rows that appear during a run are kept, so that nothing below moves."""
    best = NONE_YET if now.best_step is None else f"at step {now.best_step}"
    rows = [("Last prompt", now.prompt or NONE_YET), ("Lowest validation loss", best)]
    return [*rows, *([("Computing", now.computing)] if now.computing else [])]


def _attempt(action: Callable[[], None]) -> str:
    """Run an action; the message if it is refused. Otherwise the progress bar shows its effect."""
    try:
        action()
    except (TITrainerError, OSError) as error:
        return refusal(error)
    return ""


def _enabled(now: Snapshot) -> dict[str, bool]:
    """Whether each button can be clicked."""
    return dict.fromkeys(("preview", "copy"), now.status == "training")


def _model(page: Page) -> str:
    try:
        return facts(
            [
                ("Model", page.host.describe()),
                ("Embeddings directory", page.host.embeddings_dir),
                ("Log directory", page.host.log_dir),
            ]
        )
    except TITrainerError as error:
        return notice("warning", str(error))
