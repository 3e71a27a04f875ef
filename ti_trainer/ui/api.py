"""The API for scripts: named endpoints, to be called with gradio_client. They reveal no more than the page shows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
from ti_trainer.ui.panels.create import create, created_message

PREFIX = "ti_trainer_"


def panel(page: Page) -> None:
    """Add the endpoints, each the handler of a hidden button."""
    with gr.Row(elem_classes=["ti-hidden"]):
        name, text, images = (unsaved(gr.Textbox(label=label)) for label in ("name", "init_text", "images"))
        settings = unsaved(gr.Textbox(label="options", value="{}"))
        num_vectors = unsaved(gr.Number(label="num_vectors", value=2))
        overwrite = unsaved(gr.Checkbox(label="overwrite"))
        negative = (
            unsaved(gr.Number(label="negative_vectors", value=6)),
            unsaved(gr.Textbox(label="negative_init_text", value="*")),
        )
        result, status = unsaved(gr.Textbox(label="result")), gr.JSON(label="status")
        embedding = [name, text, num_vectors, overwrite]
        endpoints: dict[str, tuple[Callable[..., Any], list[Any], list[Any]]] = {
            "create": (partial(create_embedding, page), embedding, [result]),
            "create_pair": (partial(create_embedding, page), [*embedding, *negative], [result]),
            "train": (partial(train, page), [name, images, settings], [status]),
            "status": (lambda: run_status(page), [], [status]),
            "stop": (lambda: after(page, page.job.stop), [], [status]),
            "pause": (lambda: after(page, page.job.pause), [], [status]),
            "resume": (lambda: after(page, page.job.resume), [], [status]),
        }
        for endpoint, (handler, inputs, outputs) in endpoints.items():
            button = unsaved(gr.Button(endpoint))
            listen(button.click, handler, inputs, outputs, api_name=PREFIX + endpoint)


def create_embedding(page: Page, name: str, init_text: str, num_vectors: float, overwrite: bool, *negative: Any) -> str:
    """Create an embedding, and its negative if its number of vectors and init text are given; returns a message."""
    warnings: list[str] = []
    path = create(page, name, init_text, num_vectors, overwrite, *negative, warn=warnings.append)
    return " ".join([created_message(path, init_text, num_vectors), *warnings])


def train(page: Page, name: str, images: str, settings: str) -> dict[str, Any]:
    """Start a run and return its status; `settings` is JSON of options, named as in settings.json."""
    try:
        given = object_of(settings or "{}")
    except ValueError as error:
        message = f'The options are not valid JSON ({error}): expected an object such as {{"max_steps": 300}}.'
        raise ConfigError(message) from error
    known = {option.name for option in options()} - page.host.fixed
    check_known(given, known)
    config = TrainConfig.from_dict({**page.host.defaults, **given})
    if find_template(config.template, page.host.template_dirs) is None:
        message = f"There is no prompt template {config.template!r}: expected one of the templates listed on the page."
        raise ConfigError(message, "template")
    if (folder := entered_path(images)) == Path():
        message = "Enter the path of the folder with the training images."
        raise ConfigError(message)
    page.job.start(Session(page.host, name, folder, config))
    return run_status(page)


def run_status(page: Page, now: Snapshot | None = None) -> dict[str, Any]:
    """The status of the run, now or when this snapshot was taken."""
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


def after(page: Page, action: Callable[[], object]) -> dict[str, Any]:
    """Run an action of the job and return the status."""
    action()
    return run_status(page)
