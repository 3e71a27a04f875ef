"""The panel Train, right side: how far the run is, and what can be asked of it. The same for everyone who looks."""

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
from ti_trainer.training.selection import in_words
from ti_trainer.ui.curve import curve
from ti_trainer.ui.gradio_compat import listen
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import preprocess_progress
from ti_trainer.ui.panels.preset_row import names
from ti_trainer.ui.panels.runs import labels
from ti_trainer.ui.panels.train import trainable
from ti_trainer.ui.render import facts, images, notice, progress, refusal
from ti_trainer.ui.thumbnails import address, gallery

PREVIEWS = 8  # in view at a time
MESSAGES = {
    "waiting": "The model is busy; it begins as soon as it is free.",
    "pausing": "After this step; Resume goes on exactly where it stopped.",
    "stopping": "After this step; all that was learned is kept.",
    "preview": "A preview is drawn after this step.",
    "copy": "A copy is saved after this step, in the run's folder embeddings.",
}
SAYS = {"done": "Done.", "stopped": "Stopped; what was learned is kept.", "paused": "Paused; Resume goes on exactly here."}
Part = tuple[Any, Callable[[], Any]]


@dataclass(frozen=True)
class Watch:
    """Its components by name: what `news` keeps up to date, and the two buttons that lead elsewhere."""

    components: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        """One of them."""
        return self.components[name]


def panel(page: Page) -> Watch:
    """Lay it out."""
    parts = {"model": gr.HTML(elem_id="ti_trainer_model"), "bar": gr.HTML(progress("idle"), elem_id="ti_trainer_progress")}
    acts = {
        "pause": ("Pause", page.job.pause),
        "resume": ("Resume", page.job.resume),
        "stop": ("Stop and keep", page.job.stop),
        "preview": ("Preview now", page.job.draw_preview),
        "copy": ("Save a copy", page.job.save_copy),
    }
    with gr.Row(elem_classes=["ti-buttons"]):
        for name, (label, _) in acts.items():
            parts[name] = gr.Button(label, interactive=False, size="sm", elem_id=f"ti_trainer_{name}")
    said = gr.HTML(elem_id="ti_trainer_said")
    parts["changes"] = gr.HTML(elem_classes=["ti-hidden"])
    parts["losses"] = gr.HTML(curve([]), elem_id="ti_trainer_curve")
    parts["prompt"] = gr.HTML(facts([("Last prompt", "none yet")]), elem_id="ti_trainer_prompt")
    gr.HTML('<div class="ti-line ti-subdued">Previews, all with the same seed</div>')
    parts["previews"] = gr.Gallery(
        show_label=False, columns=4, height=300, object_fit="contain", elem_id="ti_trainer_previews"
    )
    parts["result"] = gr.HTML(elem_id="ti_trainer_result")
    with gr.Row(elem_classes=["ti-buttons"]):
        label = "Use in txt2img" if page.txt2img else "Generate with it"
        parts["use"] = gr.Button(label, interactive=False, elem_id="ti_trainer_use")
        parts["open_run"] = gr.Button("Open run", interactive=False, elem_id="ti_trainer_open_run")
    for name, (_, act) in acts.items():
        listen(parts[name].click, lambda act=act: _refusal(act), [], [said])
    return Watch(parts)


def news(page: Page, seen: str, wanted: list[str]) -> list[Any]:
    """For `poll`: what of the components `wanted` changed since a page was told last, which `seen` says."""
    before = json.loads(seen) if seen.startswith("{") else {}
    parts = shown(page, now := page.job.snapshot())
    marks = {name: _hash(parts[name][0]) for name in wanted}
    is_last = now.status not in SAYS or before.get("bar") == marks["bar"]
    if now.status in SAYS and is_last:
        marks["previews"] += ", told twice"  # on a busy machine gradio 6's gallery missed the last image of a run
    updates = [parts[name][1]() if before.get(name) != marks[name] else gr.update() for name in wanted]
    return [json.dumps({**marks, "mark": mark(parts) if is_last else "told once"}), *updates]


def mark(parts: dict[str, Part]) -> str:
    """Another one whenever something of it changes: the script asks for it before it asks for news."""
    return _hash([(name, parts[name][0]) for name in sorted(parts)])


def _hash(value: Any) -> str:
    return hashlib.sha1(repr(value).encode(), usedforsecurity=False).hexdigest()[:8]


def shown(page: Page, now: Snapshot) -> dict[str, Part]:
    """For each component what it depends on, and how to make it; lists that other panels choose from are among them."""
    after, run, model, bar = now.status in SAYS, now.run and now.run.id, _model(page), _bar(now)
    # Not before the last preview is there, too.
    changes = "" if now.active else f'<i data-changes="{escape(json.dumps(page.changes()))}"></i>'
    parts: dict[str, Part] = {
        "model": (model, lambda: model),
        "bar": (bar, lambda: bar),
        "losses": ((run, len(now.loss), now.validation), lambda: curve(now.loss, now.validation, now.rates)),
        "prompt": ((now.prompt, now.computing), lambda: facts(_told(now))),
        "previews": ([str(path) for _, path in now.previews], lambda: gr.update(value=gallery(now.previews, PREVIEWS))),
        "result": ((now.status, run, now.step * after, now.message), lambda: _result(now)),
        "changes": (changes, lambda: changes),
        "use": (after, lambda: gr.update(interactive=after)),
        "open_run": (run is not None, lambda: gr.update(interactive=run is not None)),
        "names": ("", lambda: gr.update(choices=trainable(page))),
        "presets": (presets.saved(page.presets_dir), lambda: gr.update(choices=names(page))),
        "runs": ((run, now.status), lambda: gr.update(choices=labels(page))),
    }
    parts |= preprocess_progress.news(page)
    return parts | {each: (yes, lambda yes=yes: gr.update(interactive=yes)) for each, yes in _possible(now).items()}


def _told(now: Snapshot) -> list[tuple[str, str]]:
    """What a run says of itself meanwhile."""
    return [("Last prompt", now.prompt or "none yet"), *([("Computing", now.computing)] if now.computing else [])]


def _refusal(act: Callable[[], None]) -> str:
    """Do it; nothing to say if it can be done, since the bar tells the rest."""
    try:
        act()
    except (TITrainerError, OSError) as error:
        return refusal(error)
    return ""


def _possible(now: Snapshot) -> dict[str, bool]:
    """Which buttons can be pressed."""
    ending = now.status in ("pausing", "stopping")
    training = now.status == "training"
    return {
        "pause": now.active and not ending,
        "resume": now.status in ("paused", "stopped") and now.run is not None,
        "stop": now.active and not ending,
        "preview": training,
        "copy": training,
    }


def _model(page: Page) -> str:
    try:
        return facts(
            [("Model", page.host.describe()), ("Embeddings", page.host.embeddings_dir), ("Runs", page.host.log_dir)]
        )
    except TITrainerError as error:
        return notice("warning", str(error))


def _bar(now: Snapshot) -> str:
    message = MESSAGES.get(now.requested[-1] if now.requested else now.status, "")
    if now.status == "loading" and now.loaded[1]:
        message = f"Reading image {now.loaded[0]} of {now.loaded[1]}"
    elif now.status in ("stopping", "pausing") and not now.step:
        message = "As soon as it is our turn; nothing was changed yet."
    elif now.status == "training" and now.compiling:
        message = "Compiling the network for images of this size: this step takes a minute or more."
    elif now.status == "training" and not now.loss:
        message = "The first preview is drawn before the first step."
    epoch = now.epoch if now.step else None
    left = now.seconds_left if now.status == "training" else None
    speed = now.steps_per_second if now.active else None
    return progress(now.status, now.name, now.step, now.max_steps, epoch, speed, left, message)


def _result(now: Snapshot) -> str:
    """What was written where, and what there is to be told."""
    if now.status == "failed":
        return notice("error", now.message)
    said = notice("warning", now.message)
    if now.result is None or now.status not in SAYS:
        return said
    result, run = now.result, now.result.run
    averaged = [copy for _, copy in run.copies(averaged=True)[-1:]]
    files = (("Loss curve", run.path / "loss.png"), ("Before and after", run.path / "before_after.png"))
    rows = [
        ("Embedding", result.embedding_file),
        *((("Negative", result.negative_file),) if result.negative_file else ()),
        *(("Moving average", copy) for copy in averaged),
        *(("Its negative", negative) for copy in averaged if (negative := run.negative_of(copy))),
        *((("Kept", kept),) if (kept := in_words(result.trials)) else ()),
        ("Step", result.embedding.step),
        ("Images", result.num_images),
        *((label, file) for label, file in files if file.is_file()),
        ("All of the run", run.path),
    ]
    sides = (now.previews[0], now.previews[-1]) if len(now.previews) > 1 else ()
    before_after = images([(f"step {step}", address(path)) for step, path in sides])
    skipped = "".join(notice("warning", f"{path.name} was left out: {reason}") for path, reason in result.skipped)
    return notice("good", SAYS[now.status]) + said + skipped + before_after + facts(rows)
