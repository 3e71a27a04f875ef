"""Ways out of refusals of the Train panel: the buttons that a refusal offers, and what each does before the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr

from ti_trainer.embedding import negative_name
from ti_trainer.errors import BusyError, ConfigError
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs.again import about_longer, about_reset, longer, reset
from ti_trainer.runs.session import Session
from ti_trainer.ui.page import Page
from ti_trainer.wording import counted

Prepare = Callable[[Page, Session], tuple[Session, str]]  # the run to start instead, and what was done
NEW = "New embedding"
NEGATIVE_VECTORS = 6  # as the presets recommend
PREFIX = "ti_trainer_train_"
ADD, ADD_MORE = PREFIX + "queue", PREFIX + "queue_more"  # the buttons that add the run to the queue


def train_more(page: Page, session: Session) -> tuple[Session, str]:
    """The run, with as many steps as entered after those that the embedding has been trained for already."""
    step = embeddings_dir.load(page.host.embeddings_dir, session.name)[0].step
    config = longer(session.config, step, session.config.max_steps)
    return replace(session, config=config), about_longer(session.config, config)


def start_over(page: Page, session: Session) -> tuple[Session, str]:
    """The run, after the embedding was created again from its text."""
    page.refuse_if_busy("start over")
    return session, about_reset(reset(page.host, session.name, negative=session.config.trains_negative))


def create_negative(page: Page, session: Session) -> tuple[Session, str]:
    """The run, after the negative embedding that it needs was created."""
    host = page.host
    page.refuse_if_busy("create embeddings")
    with host.lock():
        embeddings_dir.create(host.embeddings_dir, host.open_model(), negative_name(session.name), "*", NEGATIVE_VECTORS)
        host.embeddings_changed()
    return session, f"{negative_name(session.name)} was created with {counted(NEGATIVE_VECTORS, 'vector')}."


def hidden() -> tuple[dict[Any, Prepare], dict[Any, Prepare | None]]:
    """Add the hidden buttons behind those in refusals: those that start the run, and those that add it to the queue."""
    handlers: dict[str, Prepare] = {"more": train_more, "over": start_over, "create_negative": create_negative}
    with gr.Row(elem_classes=["ti-hidden"]):
        ways = {gr.Button(name, elem_id=PREFIX + name): handler for name, handler in handlers.items()}
        return ways, {gr.Button("Add more to queue", elem_id=ADD_MORE): train_more}


def out_of(
    error: ConfigError, page: Page, name: str, steps: int, prepare: Prepare | None, *, queued: bool
) -> dict[str, str]:
    """The ways out of a refusal, for `render.ways_out`; `prepare` and `queued` are those of what was refused."""
    if isinstance(error, BusyError):
        add = ADD if prepare is None else ADD_MORE if prepare is train_more else ""
        stop = "Stop the comparison" if page.comparing.snapshot().active else "Stop that run"
        return {**({"Add to queue": f"press:{add}"} if add else {}), stop: "press:ti_trainer_stop"}
    if error.option == "negative" and embeddings_dir.find(page.host.embeddings_dir, negative_name(name)) is None:
        return {"Create the negative embedding and train": f"press:{PREFIX}create_negative"}
    if error.option == "max_steps" and queued:
        return {f"Add {steps} more steps to the queue": f"press:{ADD_MORE}", NEW: "show:Create embedding"}
    if error.option == "max_steps":
        more = {f"Train {steps} more steps": f"press:{PREFIX}more"}
        return {**more, "Start over": f"press:{PREFIX}over", NEW: "show:Create embedding"}
    return {}
