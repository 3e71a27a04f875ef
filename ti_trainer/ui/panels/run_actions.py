"""The Runs panel: continue a run now or in the queue, or use one of its copies. Each refusal has buttons that lead out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ti_trainer import formats
from ti_trainer.config.training import TrainConfig
from ti_trainer.embedding import negative_name
from ti_trainer.errors import BusyError, ConfigError, TITrainerError
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs import locks
from ti_trainer.runs.retrain import about_longer, longer
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import queue
from ti_trainer.ui.panels.run_notes import find
from ti_trainer.ui.render import notice, refusal
from ti_trainer.ui.widgets import whole
from ti_trainer.workbench.candidates import copies_of

QUEUE = "ti_trainer_runs_queue"
ASK = "ti_trainer_runs_ask"  # a hidden text box: what a button of a refusal asks for, some of the words below
QUEUED, MORE, OVER, PROMOTE = "queue", "more", "over", "promote"
AGAIN = {"Again with changes": "press:ti_trainer_runs_use_settings"}


@dataclass(frozen=True)
class Actions:
    """The components that the actions read, and the messages of runs and of copies."""

    page: Page
    chosen: Any
    max_steps: Any
    copy: Any
    name: Any
    overwrite: Any
    message: Any
    promoted: Any

    def wire(self, resume: Any, add: Any, promote: Any) -> list[Any]:
        """Connect the buttons; returns the events that continue a run, for `.then`."""
        with gr.Row(elem_classes=["ti-hidden"]):
            ask = unsaved(gr.Textbox(value="", elem_id=ASK))
        run = [self.chosen, self.max_steps, self.overwrite]
        of_copy = [self.chosen, self.copy, self.name, self.overwrite]
        outputs = [self.message]
        listen(promote.click, partial(promote_copy, self.page), of_copy, [self.promoted])
        both = [*outputs, self.promoted]
        return [
            listen(resume.click, partial(continued_message, self.page), run, outputs, show_progress="minimal"),
            listen(add.click, partial(continued_message, self.page, wanted=[QUEUED]), run, outputs),
            listen(ask.change, self.asked, [ask, self.max_steps, *of_copy], both, show_progress="minimal"),
        ]

    def asked(self, text: str, max_steps: float | None, label: str, copy: str, name: str, overwrite: bool) -> list[Any]:
        """Do what a button of a refusal asks for."""
        wanted = (text or "").split()
        if not wanted:  # gradio 6 clears a text box soon after creating it
            return [gr.update(), gr.update()]
        if PROMOTE in wanted:
            return [gr.update(), promote_copy(self.page, label, copy, name, True)]
        return [continued_message(self.page, label, max_steps, overwrite or OVER in wanted, wanted), gr.update()]


def continue_run(page: Page, label: str, max_steps: float | None, overwrite: bool, wanted: Collection[str] = ()) -> str:
    """Continue a run, or add that to the queue; TITrainerError if that is not possible, or would overwrite later training.

    With MORE, for as many steps as it had.
    """
    run = find(page, label)
    if _is_trained_now(page, run):
        message = f"{run.id} is being trained now."
        raise BusyError(message)
    settings, steps = run.settings(), whole(max_steps, "Max steps")
    try:
        values = {**run.options(), **({"max_steps": steps} if steps else {})}
        name, folder = settings["name"], Path(settings["images"])
    except (KeyError, TypeError) as error:
        message = f"The settings of {run.id} are damaged or missing, so it cannot be continued."
        raise ConfigError(message) from error
    config, said = TrainConfig.from_dict(values), ""
    if MORE in wanted:
        before, config = config, longer(config, run.step, config.max_steps)
        said = f" {about_longer(before, config)}"
    session = Session(page.host, name, folder, config, run, overwrite=page.overwrite(overwrite))
    if QUEUED in wanted:
        return queue.add(page, session) + said
    page.job.start(session)
    return f"Continuing {name} at step {run.step}: see the Train tab.{said}"


def _is_trained_now(page: Page, run: Run) -> bool:
    now = page.job.snapshot()
    return now.active and now.run is not None and now.run.path == run.path


def continued_message(page: Page, label: str, max_steps: float | None, overwrite: bool, wanted: Collection[str] = ()) -> str:
    """Continue a run; the message, also if it is refused."""
    try:
        return notice("good", continue_run(page, label, max_steps, overwrite, wanted))
    except (TITrainerError, OSError) as error:
        return refusal(error, _ways_out(error, page, label, set(wanted)))


def _ways_out(error: Exception, page: Page, label: str, wanted: set[str]) -> dict[str, str]:
    """The ways out of a refusal to continue a run."""

    def ask(*more: str) -> str:
        return f"ask:{ASK} {' '.join(sorted({*wanted & {QUEUED, MORE, OVER}, *more}))}"

    option = error.option if isinstance(error, ConfigError) else ""
    try:
        steps = find(page, label).options().get("max_steps")
    except (TITrainerError, KeyError, TypeError):
        return {} if label else {"Train": "show:Train"}
    if isinstance(error, BusyError):
        return {} if _is_trained_now(page, find(page, label)) else {"Add to queue": ask(QUEUED)}
    if option == "max_steps" and isinstance(steps, int):
        more = f"Add {steps} more steps to the queue" if QUEUED in wanted else f"Train {steps} more steps"
        return {more: ask(MORE), **AGAIN}
    if option == "overwrite":
        return {**({} if page.is_public else {"Continue and keep a copy of the file": ask(OVER)}), **AGAIN}
    return {**AGAIN, "New embedding": "show:Create embedding"}


def promote_copy(page: Page, label: str, copy: str, name: str, overwrite: bool) -> str:
    """Copy a saved copy and its negative embedding into the embeddings folder; the message, also if it is refused."""
    try:
        run, host = find(page, label), page.host
        path = copies_of(run).get(str(copy))
        if path is None:
            message = "Choose a copy. If the list is empty, the run has saved none."
            raise ConfigError(message)
        warnings: list[str] = []
        wanted, negative = {(name or "").strip(): path}, run.negative_of(path)
        if negative is not None:
            wanted[negative_name((name or "").strip())] = negative
        overwrite = page.overwrite(overwrite)
        page.refuse_if_busy("copy to the embeddings folder")
        with host.lock(), locks.embeddings_held(host.embeddings_dir, wanted):
            new = [replace(formats.read(path), name=each) for each, path in wanted.items()]
            files = [
                embeddings_dir.free_file(host.embeddings_dir, each.name, len(each.vectors), overwrite=overwrite)
                for each in new
            ]
            for each, file in zip(new, files, strict=True):
                embeddings_dir.save(each, file, warnings.append)
            host.embeddings_changed()
    except (TITrainerError, OSError) as error:
        exists = isinstance(error, ConfigError) and error.option == "overwrite" and not page.is_public
        return refusal(error, {"Replace the existing embedding": f"ask:{ASK} {PROMOTE}"} if exists else None)
    message = f"Copied to the embeddings folder: {', '.join(map(str, files))}."
    return notice("good", message) + "".join(notice("warning", each) for each in warnings)
