"""The Runs panel: label and notes of a run, and the bin."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ti_trainer.errors import BusyError, ConfigError, TITrainerError
from ti_trainer.runs import bin as run_bin
from ti_trainer.runs import notes
from ti_trainer.runs.run_folder import Run
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.render import notice, refusal
from ti_trainer.wording import encodable

PREFIX = "ti_trainer_runs_"
MAX_RUNS = 200  # in a list
SEPARATOR = " · "
LABELLED = re.compile(rf"(.+?) \((?:step \d+ of [^()]*|unreadable)\)(?:{SEPARATOR}.*)?", re.DOTALL)


@dataclass(frozen=True)
class RunNotes:
    """The fields for the label and the notes, and the components of the bin."""

    label: Any
    notes: Any
    save: Any
    message: Any
    remove: Any
    in_bin: Any
    restore: Any
    bin_message: Any

    def wire(self, page: Page, chosen: Any) -> None:
        """Connect the buttons; `chosen` is the list of runs."""
        given = [chosen, self.label, self.notes]
        for event in (self.save.click, self.label.submit):
            listen(event, lambda *values: save(page, *values), given, [self.message, chosen])
        lists = [self.bin_message, chosen, self.in_bin]
        listen(self.remove.click, lambda label: remove(page, label), [chosen], lists)
        listen(self.restore.click, lambda label: restore(page, label), [self.in_bin], lists)


def panel(page: Page) -> RunNotes:
    """Add both sections."""
    with gr.Accordion("Label and notes", open=False, visible=not page.is_public):
        label = gr.Textbox(label="Label", info="Shown in the list beside the run.", max_lines=1, elem_id=PREFIX + "label")
        text = gr.Textbox(
            label="Notes", info="Saved in the run folder as notes.txt.", lines=3, max_lines=12, elem_id=PREFIX + "notes"
        )
        button = gr.Button("Save label and notes", elem_id=PREFIX + "save_notes")
        message = gr.HTML(elem_id=PREFIX + "notes_message")
    with gr.Accordion("Bin", open=False, visible=not page.is_public):
        remove_button = gr.Button("Move this run to the bin", elem_id=PREFIX + "remove")
        in_bin = gr.Dropdown(labels_in_bin(page), value=None, label="In the bin", elem_id=PREFIX + "in_bin")
        restore_button = gr.Button("Restore", elem_id=PREFIX + "restore")
        bin_message = gr.HTML(elem_id=PREFIX + "bin_message")
    for each in (label, text, in_bin):
        unsaved(each)
    return RunNotes(label, text, button, message, remove_button, in_bin, restore_button, bin_message)


def label_of(run: Run) -> str:
    """A short text that starts with the run's id, for `find`, and ends with the user's label."""
    settings, label = run.settings(), notes.read_label(run)
    about = f"step {run.step} of {settings.get('train', {}).get('max_steps', '?')}" if settings else "unreadable"
    return encodable(SEPARATOR.join(filter(None, (f"{run.id} ({about})", label))))


def labels(page: Page) -> list[str]:
    """The labels of the newest runs."""
    return [label_of(run) for run in Run.all(page.host.log_dir)[:MAX_RUNS]]


def labels_in_bin(page: Page) -> list[str]:
    """The labels of the runs in the bin."""
    return [] if page.is_public else [label_of(run) for run in run_bin.runs_in(page.host.log_dir)[:MAX_RUNS]]


def find(page: Page, label: str | None, *, in_bin: bool = False) -> Run:
    """Look up a run by its label among the existing ones; what the user types is never used as a path."""
    match = LABELLED.fullmatch(label or "")
    wanted = match.group(1) if match else (label or "").rsplit(" (", 1)[0]
    for run in run_bin.runs_in(page.host.log_dir) if in_bin else Run.all(page.host.log_dir):
        if encodable(run.id) == wanted:
            return run
    message = f"The run {wanted} no longer exists: refresh the list." if wanted else "Choose a run in the list."
    raise ConfigError(message)


def save(page: Page, chosen: str | None, label: str | None, text: str | None) -> list[Any]:
    """Save the label and the notes of the chosen run; the message, and an update of the list."""

    def act() -> list[Any]:
        page.refuse_visitors("change notes", page.host.log_dir)
        run = find(page, chosen)
        notes.save(run, label or "", text or "")
        return [notice("good", f"Saved in {run.path}."), gr.update(choices=labels(page), value=label_of(run))]

    return _attempt(act, 1)


def remove(page: Page, chosen: str | None) -> list[Any]:
    """Move the chosen run to the bin; the message, and updates of both lists."""

    def act() -> list[Any]:
        page.refuse_visitors("move runs to the bin", page.host.log_dir)
        run, now = find(page, chosen), page.job.snapshot()
        if now.active and now.run is not None and now.run.path == run.path:
            message = f"{run.id} is being trained: stop it first."
            raise BusyError(message)
        moved = run_bin.remove(run, page.host.log_dir)
        listed = labels(page)
        said = notice("good", f"Moved to {moved.path}. The embedding is not affected. Nothing in the bin is deleted.")
        return [
            said,
            gr.update(choices=listed, value=listed[0] if listed else None),
            gr.update(choices=labels_in_bin(page), value=label_of(moved)),
        ]

    return _attempt(act, 2)


def restore(page: Page, label: str | None) -> list[Any]:
    """Move a run from the bin back to the list; the message, and updates of both lists."""

    def act() -> list[Any]:
        page.refuse_visitors("restore runs", page.host.log_dir)
        run = run_bin.restore(find(page, label, in_bin=True), page.host.log_dir)
        return [
            notice("good", f"Restored as {run.path}."),
            gr.update(choices=labels(page), value=label_of(run)),
            gr.update(choices=labels_in_bin(page), value=None),
        ]

    return _attempt(act, 2)


def _attempt(act: Callable[[], list[Any]], lists: int) -> list[Any]:
    """Do something; if it is refused, the message and no update of the lists."""
    try:
        return act()
    except (TITrainerError, OSError) as error:
        return [refusal(error), *(gr.update() for _ in range(lists))]
