"""Ways out of refusals of the Train panel: the buttons that a refusal offers, and what each does before the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr

from ti_trainer.embedding import negative_name
from ti_trainer.errors import BusyError, ConfigError, TITrainerError
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs.retrain import about_longer, about_reset, longer, reset
from ti_trainer.runs.session import Session
from ti_trainer.ui.gradio_compat import listen
from ti_trainer.ui.page import Page
from ti_trainer.ui.render import notice, refusal, ways_out
from ti_trainer.wording import counted

Prepare = Callable[[Page, Session], tuple[Session, str]]  # the run to start instead, and what was done
NEW = "New embedding"
NEGATIVE_VECTORS = 6  # as the presets recommend
PREFIX = "ti_trainer_train_"
MAKE_NEGATIVE = PREFIX + "make_negative"
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
    return session, _create_negative(page, session.name)


def _create_negative(page: Page, name: str) -> str:
    host = page.host
    page.refuse_if_busy("create embeddings")
    with host.lock():
        embeddings_dir.create(host.embeddings_dir, host.open_model(), negative_name(name), "*", NEGATIVE_VECTORS)
        host.embeddings_changed()
    return f"{negative_name(name)} was created with {counted(NEGATIVE_VECTORS, 'vector')}."


def about_negative(page: Page, name: str | None, negative: bool) -> str:
    """A warning, with the way out, if DreamArtist is on and the embedding has no negative one; otherwise ""."""
    folder = page.host.embeddings_dir
    if not negative or not name or embeddings_dir.find(folder, name) is None:
        return ""
    if embeddings_dir.find(folder, negative_name(name)) is not None:
        return ""
    message = (
        f"DreamArtist trains {name} together with a negative embedding {negative_name(name)}, which does not exist yet."
    )
    return notice("warning", message) + ways_out({"Create the negative": f"press:{MAKE_NEGATIVE}"})


def put_negative() -> tuple[Any, Any]:
    """Add the place for that warning, and the hidden button behind its way out."""
    about = gr.HTML(elem_id=PREFIX + "about_negative", elem_classes=["ti-whole"])
    with gr.Row(elem_classes=["ti-hidden"]):
        return about, gr.Button("Create the negative", elem_id=MAKE_NEGATIVE)


def wire_negative(page: Page, about: Any, button: Any, name: Any, negative: Any) -> None:
    """Show the warning once DreamArtist is on, and create the negative embedding."""

    def make(name: str | None) -> str:
        try:
            return notice("good", _create_negative(page, (name or "").strip()))
        except (TITrainerError, OSError) as error:
            return refusal(error)

    for event in (name.change, negative.change):
        listen(event, partial(about_negative, page), [name, negative], [about])
    listen(button.click, make, [name], [about], show_progress="minimal")


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
        return {"Add to queue": f"press:{add}"} if add else {}
    if error.option == "negative" and embeddings_dir.find(page.host.embeddings_dir, negative_name(name)) is None:
        return {"Create the negative embedding and train": f"press:{PREFIX}create_negative"}
    if error.option == "max_steps" and queued:
        return {f"Add {steps} more steps to the queue": f"press:{ADD_MORE}", NEW: "show:Create embedding"}
    if error.option == "max_steps":
        more = {f"Train {steps} more steps": f"press:{PREFIX}more"}
        return {**more, "Start over": f"press:{PREFIX}over", NEW: "show:Create embedding"}
    return {}
