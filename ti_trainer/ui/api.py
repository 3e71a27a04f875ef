"""What the page does, for scripts: named endpoints, to be called with gradio_client. Says no more than the page shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from ti_trainer.config.json_text import object_of
from ti_trainer.config.training import TrainConfig, check_known, options
from ti_trainer.data.prompts import find_template
from ti_trainer.errors import ConfigError
from ti_trainer.files import entered_path
from ti_trainer.runs.job import Snapshot
from ti_trainer.runs.session import Session
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels.create import create, said_of

PREFIX = "ti_trainer_"


def panel(page: Page) -> None:
    """Buttons that nobody sees, since an endpoint is the handler of one."""
    with gr.Row(elem_classes=["ti-hidden"]):
        name, text, images = (unsaved(gr.Textbox(label=label)) for label in ("name", "init_text", "images"))
        settings = unsaved(gr.Textbox(label="options", value="{}"))
        num_vectors = unsaved(gr.Number(label="num_vectors", value=2, precision=0))
        overwrite = unsaved(gr.Checkbox(label="overwrite"))
        unwanted = (
            unsaved(gr.Number(label="negative_vectors", value=6, precision=0)),
            unsaved(gr.Textbox(label="negative_init_text", value="*")),
        )
        said, state = unsaved(gr.Textbox(label="result")), gr.JSON(label="status")
        endpoints = {
            "create": (lambda *given: created(page, *given), [name, text, num_vectors, overwrite], [said]),
            "create_pair": (lambda *given: created(page, *given), [name, text, num_vectors, overwrite, *unwanted], [said]),
            "train": (lambda *given: train(page, *given), [name, images, settings], [state]),
            "status": (lambda: status(page), [], [state]),
            "stop": (lambda: asked(page, page.job.stop), [], [state]),
            "pause": (lambda: asked(page, page.job.pause), [], [state]),
            "resume": (lambda: asked(page, page.job.resume), [], [state]),
        }
        for endpoint, (act, inputs, outputs) in endpoints.items():
            button = unsaved(gr.Button(endpoint))
            listen(button.click, act, inputs, outputs, api_name=PREFIX + endpoint)


def created(page: Page, name: str, init_text: str, num_vectors: float, overwrite: bool, *negative: Any) -> str:
    """Create an embedding, and its negative if its number of vectors and init text are given; says what and where."""
    warned: list[str] = []
    path = create(page, name, init_text, num_vectors, overwrite, *negative, warn=warned.append)
    return " ".join([said_of(path, init_text, num_vectors), *warned])


def train(page: Page, name: str, images: str, settings: str) -> dict[str, Any]:
    """Start a run; `settings` is JSON of options by the names that the settings file has. Returns `status`."""
    try:
        given = object_of(settings or "{}")
    except ValueError as error:
        message = f'The options cannot be read ({error}): expected JSON such as {{"max_steps": 300}}.'
        raise ConfigError(message) from error
    known = {option.name for option in options()} - page.host.fixed
    check_known(given, known)
    config = TrainConfig.from_dict({**page.host.defaults, **given})
    if find_template(config.template, page.host.template_dirs) is None:
        message = f"There is no prompt template {config.template!r}: expected one of those that the page lists."
        raise ConfigError(message, "template")
    if (folder := entered_path(images)) == Path():
        message = "Name the folder with the images to learn from."
        raise ConfigError(message)
    page.job.start(Session(page.host, name, folder, config))
    return status(page)


def status(page: Page, now: Snapshot | None = None) -> dict[str, Any]:
    """How far the run is, or was when this snapshot was taken."""
    now = now or page.job.snapshot()
    return {
        "status": now.status,
        "name": now.name,
        "message": now.message,
        "step": now.step,
        "max_steps": now.max_steps,
        "epoch": now.epoch,
        "steps_per_second": round(now.steps_per_second, 4),
        "seconds_left": now.seconds_left if now.active else None,
        "loss": now.loss[-1][1] if now.loss else None,
        "run": str(now.run.path) if now.run else None,
        "embedding": str(now.result.embedding_file) if now.result else None,
    }


def asked(page: Page, act: Any) -> dict[str, Any]:
    """Ask for something and tell the status."""
    act()
    return status(page)
