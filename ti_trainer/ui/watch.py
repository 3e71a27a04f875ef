"""The panel Train, right side: how far the run is, and what can be asked of it. The same for everyone who looks."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ti_trainer.errors import TITrainerError
from ti_trainer.training.job import Snapshot
from ti_trainer.ui.curve import curve
from ti_trainer.ui.gradio_compat import listen
from ti_trainer.ui.page import Page
from ti_trainer.ui.render import facts, notice, pictures, progress
from ti_trainer.ui.train import trainable

PREVIEWS_HEADING = '<div class="ti-line ti-subdued">Previews, all with the same seed</div>'
PREVIEWS = 8  # of the newest that are shown beside the first
MESSAGES = {
    "waiting": "The model is busy; it begins as soon as it is free.",
    "pausing": "After this step; Resume goes on exactly where it stopped.",
    "stopping": "After this step; all that was learned is kept.",
    "preview": "A preview is drawn after this step.",
    "copy": "A copy is saved after this step, in the run's folder embeddings.",
}
ENDED = ("paused", "stopped", "done")


@dataclass(frozen=True)
class Watch:
    """What other panels need of this one."""

    use: Any
    open_run: Any
    news: Callable[[str], list[Any]]  # for poll, which stands outside all tabs
    outputs: list[Any]


def panel(page: Page, name: Any) -> Watch:
    """Lay it out and keep it up to date. `name` is the form's list of embeddings."""
    model = gr.HTML(elem_id="ti_trainer_model")
    bar = gr.HTML(progress("idle"), elem_id="ti_trainer_progress")
    with gr.Row(elem_classes=["ti-buttons"]):
        buttons = {
            "pause": gr.Button("Pause", interactive=False, size="sm", elem_id="ti_trainer_pause"),
            "resume": gr.Button("Resume", interactive=False, size="sm", elem_id="ti_trainer_resume"),
            "stop": gr.Button("Stop and keep", interactive=False, size="sm", elem_id="ti_trainer_stop"),
            "preview": gr.Button("Preview now", interactive=False, size="sm", elem_id="ti_trainer_preview"),
            "copy": gr.Button("Save a copy", interactive=False, size="sm", elem_id="ti_trainer_copy"),
        }
    said = gr.HTML(elem_id="ti_trainer_said")
    losses = gr.HTML(curve([]), elem_id="ti_trainer_curve")
    prompt = gr.HTML(facts([("Last prompt", "none yet")]), elem_id="ti_trainer_prompt")
    gr.HTML(PREVIEWS_HEADING)
    previews = gr.Gallery(show_label=False, columns=4, height=300, object_fit="contain", elem_id="ti_trainer_previews")
    result = gr.HTML(elem_id="ti_trainer_result")
    with gr.Row(elem_classes=["ti-buttons"]):
        use = gr.Button(
            "Use in txt2img" if page.txt2img else "Generate with it", interactive=False, elem_id="ti_trainer_use"
        )
        open_run = gr.Button("Open run", interactive=False, elem_id="ti_trainer_open_run")

    def shown(now: Snapshot) -> dict[str, tuple[Any, Callable[[], Any]]]:
        """For each output what it depends on, and how to make it."""
        can = _possible(now)
        after = now.status in ENDED
        parts: dict[str, tuple[Any, Callable[[], Any]]] = {
            "model": (_model(page), lambda: _model(page)),
            "bar": (_bar(now), lambda: _bar(now)),
            "losses": ((now.run and now.run.id, len(now.loss), now.deterministic), lambda: _curve(now)),
            "prompt": (now.prompt, lambda: facts([("Last prompt", now.prompt or "none yet")])),
            "previews": ([str(path) for _, path in now.previews], lambda: gr.update(value=_previews(now))),
            "result": ((now.status, now.run and now.run.id), lambda: _result(now) if after else ""),
            "use": (after, lambda: gr.update(interactive=after)),
            "open_run": (now.run is not None, lambda: gr.update(interactive=now.run is not None)),
            "names": ("", lambda: gr.update(choices=trainable(page))),
        }
        return parts | {each: (yes, lambda yes=yes: gr.update(interactive=yes)) for each, yes in can.items()}

    outputs = {
        "model": model,
        "bar": bar,
        "losses": losses,
        "prompt": prompt,
        "previews": previews,
        "result": result,
        "use": use,
        "open_run": open_run,
        "names": name,
        **buttons,
    }

    def news(seen: str) -> list[Any]:
        """Only what changed since this page was told last."""
        before = json.loads(seen) if seen.startswith("{") else {}
        parts = shown(page.job.snapshot())
        marks = {key: hashlib.sha1(repr(parts[key][0]).encode(), usedforsecurity=False).hexdigest()[:8] for key in outputs}
        updates = [parts[key][1]() if before.get(key) != marks[key] else gr.update() for key in outputs]
        return [json.dumps(marks), *updates]

    job = page.job
    acts = {"pause": job.pause, "resume": job.resume, "stop": job.stop, "preview": job.draw_preview, "copy": job.save_copy}
    for key, act in acts.items():
        listen(buttons[key].click, lambda act=act: _refusal(act), [], [said], queue=False)
    return Watch(use, open_run, news, list(outputs.values()))


def _refusal(act: Callable[[], None]) -> str:
    """Do it; nothing to say if it can be done, since the bar tells the rest."""
    try:
        act()
    except TITrainerError as error:
        return notice("error", str(error))
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
    message = now.message or MESSAGES.get(now.asked[-1] if now.asked else now.status, "")
    if now.status == "loading" and now.loaded[1]:
        message = f"Reading picture {now.loaded[0]} of {now.loaded[1]}"
    epoch = now.epoch if now.step else None
    left = now.seconds_left if now.status == "training" else None
    speed = now.steps_per_second if now.active else None
    return progress(now.status, now.name, now.step, now.max_steps, epoch, speed, left, message)


def _curve(now: Snapshot) -> str:
    return curve(now.loss, now.deterministic, now.rates)


def _previews(now: Snapshot) -> list[tuple[Image.Image, str]]:
    """The first, which shows the start, and the newest."""
    chosen = list(now.previews)
    if len(chosen) > PREVIEWS:
        chosen = [chosen[0], *chosen[1 - PREVIEWS :]]
    return [(Image.open(path).convert("RGB"), f"step {step}") for step, path in chosen]


def _result(now: Snapshot) -> str:
    """What was written where."""
    if now.result is None:
        return ""
    result, run = now.result, now.run.path
    rows = [("Embedding", result.embedding_file), ("Step", result.embedding.step), ("Pictures", len(result.dataset.items))]
    files = (("Loss curve", run / "loss.png"), ("Before and after", run / "before_after.png"))
    rows += [(label, file) for label, file in files if file.is_file()]
    said = {
        "done": "Done.",
        "stopped": "Stopped; what was learned is kept.",
        "paused": "Paused; Resume goes on exactly here.",
    }
    sides = (now.previews[0], now.previews[-1]) if len(now.previews) > 1 else ()
    before_after = pictures([(f"step {step}", address(path)) for step, path in sides])
    skipped = "".join(notice("warning", f"{path.name} was left out: {reason}") for path, reason in result.dataset.skipped)
    return notice("good", said[now.status]) + skipped + before_after + facts([*rows, ("All of the run", run)])


def address(path: Path, side: int = 264) -> str:
    """A picture as a data: URI, no larger than it is shown: so no file has to be served."""
    small = Image.open(path).convert("RGB")
    small.thumbnail((side, side))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
