"""The panel Runs: earlier runs with their curves and images; go on with one, or take one of its copies into use."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from ti_trainer import formats
from ti_trainer.config.training import TrainConfig
from ti_trainer.embedding import averaged_name, negative_name
from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs import locks
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session
from ti_trainer.ui.curve import curve
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.render import facts, notice, refusal
from ti_trainer.ui.thumbnails import gallery

MOST = 200  # runs in the list, the newest ones
AVERAGE = ", moving average"


@dataclass(frozen=True)
class Runs:
    """What other panels need of this one."""

    chosen: Any
    continued: Any  # an event that something may follow with .then


def panel(page: Page) -> Runs:
    """Lay it out: the list and what can be done on the left, what a run was like on the right."""
    with gr.Row(elem_classes=["ti-columns"]):
        with gr.Column(elem_classes=["ti-form"]):
            with gr.Row(elem_classes=["ti-tight"]):
                chosen = gr.Dropdown(
                    labels(page), label="Run", elem_id="ti_trainer_runs_chosen", allow_custom_value=True, value=None
                )
                refresh = gr.Button("↻", elem_id="ti_trainer_runs_refresh", elem_classes=["ti-icon"])
            about = gr.HTML(elem_id="ti_trainer_runs_about")
            max_steps = gr.Number(
                value=0,
                precision=0,
                label="Max steps",
                info="How far to go when it goes on; 0 is as far as was planned.",
                elem_id="ti_trainer_runs_max_steps",
            )
            go_on = gr.Button("Continue this run", variant="primary", elem_id="ti_trainer_runs_continue")
            about_copies = "Copies that the run kept, by step; with DreamArtist its negative goes along."
            copy = gr.Dropdown([], label="Copy", info=about_copies, elem_id="ti_trainer_runs_copy")
            name = gr.Textbox(
                label="Name in the embeddings folder",
                info="Under another name than the run's own, both can be compared in one prompt.",
                max_lines=1,
                elem_id="ti_trainer_runs_name",
            )
            overwrite = gr.Checkbox(label="Overwrite Old Embedding", value=False, elem_id="ti_trainer_runs_overwrite")
            promote = gr.Button("Put this copy into the embeddings folder", elem_id="ti_trainer_runs_promote")
            said = gr.HTML(elem_id="ti_trainer_runs_said")
        with gr.Column(elem_classes=["ti-results"]):
            losses = gr.HTML(curve([]), elem_id="ti_trainer_runs_curve")
            gr.HTML('<div class="ti-line ti-subdued">Previews, all with the same seed</div>')
            previews = gr.Gallery(
                show_label=False,
                columns=4,
                height=420,
                object_fit="contain",
                elem_id="ti_trainer_runs_previews",
            )
    for each in (chosen, max_steps, copy, name, overwrite):
        unsaved(each)
    shown = [about, losses, previews, copy, name, said]
    listen(refresh.click, lambda: gr.update(choices=labels(page)), [], [chosen])
    listen(chosen.change, lambda label: details(page, label), [chosen], shown)
    listen(copy.change, lambda *given: named(page, *given), [chosen, copy], [name])
    inputs = [chosen, max_steps, overwrite]
    continued = listen(go_on.click, lambda *given: went_on(page, *given), inputs, [said], show_progress="minimal")
    listen(promote.click, lambda *given: promoted(page, *given), [chosen, copy, name, overwrite], [said])
    return Runs(chosen, continued)


def label_of(run: Run) -> str:
    """Short, and beginning with what `find` needs."""
    settings = run.settings()
    if not settings:
        return f"{run.id} (cannot be read)"
    max_steps = settings.get("train", {}).get("max_steps", "?")
    return f"{run.id} (step {run.step} of {max_steps})"


def labels(page: Page) -> list[str]:
    """The newest runs."""
    return [label_of(run) for run in Run.all(page.host.log_dir)[:MOST]]


def find(page: Page, label: str) -> Run:
    """A run by its label, out of those that there are: what is typed is never taken for a path."""
    wanted = (label or "").rsplit(" (", 1)[0]
    for run in Run.all(page.host.log_dir):
        if run.id == wanted:
            return run
    message = (
        "Choose one of the runs in the list." if not wanted else f"There is no run {wanted} any more: refresh the list."
    )
    raise ConfigError(message)


def details(page: Page, label: str) -> list[Any]:
    """What the right side and the lists show of a run."""
    if not label:
        return ["", curve([]), gr.update(value=[]), gr.update(choices=[], value=None), "", ""]
    try:
        run = find(page, label)
    except ConfigError as error:
        return [notice("error", str(error)), curve([]), gr.update(value=[]), gr.update(choices=[], value=None), "", ""]
    settings, rows = run.settings(), run.losses()
    if not settings:
        said = notice("error", f"The run {run.path} cannot be read: {run.damage or 'settings.json is empty'}.")
        return [said, curve([]), gr.update(value=gallery(run.previews())), gr.update(choices=[], value=None), "", ""]
    copies = list(_copies(run))
    known = [
        ("Embedding", settings.get("name")),
        ("Step", run.step),
        ("Last at work", time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed_at))),
        ("Images", f"{settings.get('num_images')} in {settings.get('images')}"),
        ("Model", settings.get("model")),
        *_unusual(settings.get("train", {})),
        ("Folder", run.path),
    ]
    drawn = curve(
        [(row["step"], row["loss"]) for row in rows],
        run.validation_losses(),
        [(row["step"], row["learn_rate"]) for row in rows],
    )
    last = copies[0] if copies else None
    return [
        facts(known),
        drawn,
        gr.update(value=gallery(run.previews())),
        gr.update(choices=copies, value=last),
        name_for(run, last),
        "",
    ]


def name_for(run: Run, copy: str | None) -> str:
    """What a copy may be called in the embeddings folder, so that it stands beside the run's own embedding."""
    name = run.settings().get("name")
    return f"{name}-{copy.replace(AVERAGE, averaged_name(''))}" if name and copy else ""


def named(page: Page, label: str, copy: str | None) -> Any:
    """The entry for the name, when another copy was chosen."""
    try:
        return name_for(find(page, label), copy)
    except ConfigError:  # of a run that is gone `details` tells
        return gr.update()


def _copies(run: Run) -> dict[str, Path]:
    """Copies by what people choose them by, the last step first."""
    live = [(step, "", path) for step, path in run.copies()]
    averaged = [(step, AVERAGE, path) for step, path in run.copies(averaged=True)]
    return {f"{step}{what}": path for step, what, path in sorted(live + averaged, key=lambda each: (-each[0], each[1]))}


def go_on_with(page: Page, label: str, max_steps: float | None, overwrite: bool) -> str:
    """Continue a run; TITrainerError if that cannot be, or if it would undo what the word has learned since."""
    run = find(page, label)
    settings = run.settings()
    try:
        values = {**run.options(), **({"max_steps": int(max_steps)} if max_steps else {})}
        name, images = settings["name"], Path(settings["images"])
    except (KeyError, TypeError) as error:
        message = f"The settings of {run.id} are damaged or missing: it cannot be continued."
        raise ConfigError(message) from error
    config = TrainConfig.from_dict(values)
    page.job.start(Session(page.host, name, images, config, run, overwrite=overwrite))
    return f"Going on with {name} at step {run.step}: see the Train page."


def went_on(page: Page, *given: Any) -> str:
    """What came of it, for people."""
    try:
        return notice("good", go_on_with(page, *given))
    except (TITrainerError, OSError) as error:
        return refusal(error)


def promoted(page: Page, label: str, copy: str, name: str, overwrite: bool) -> str:
    """Put a copy, and the negative that was made with it, into the embeddings folder, and say so or why not."""
    try:
        run, host = find(page, label), page.host
        path = _copies(run).get(str(copy))
        if path is None:
            message = "Choose a copy: this run has kept none, or it is gone."
            raise ConfigError(message)
        warned: list[str] = []
        wanted, negative = {(name or "").strip(): path}, run.negative_of(path)
        if negative is not None:
            wanted[negative_name((name or "").strip())] = negative
        page.refuse_if_busy("take copies into use")
        with host.lock(), locks.embeddings_held(host.embeddings_dir, wanted):
            new = [replace(formats.read(path), name=each) for each, path in wanted.items()]
            files = [
                embeddings_dir.free_file(host.embeddings_dir, each.name, len(each.vectors), overwrite=overwrite)
                for each in new
            ]
            for each, file in zip(new, files, strict=True):
                embeddings_dir.save(each, file, warned.append)
            host.embeddings_changed()
    except (TITrainerError, OSError) as error:
        return refusal(error)
    verb = "are" if len(files) > 1 else "is"
    said = f"{' and '.join(wanted)} {verb} in the embeddings folder now: {', '.join(map(str, files))}."
    return notice("good", said) + "".join(notice("warning", each) for each in warned)


def _unusual(train: dict[str, Any]) -> list[tuple[str, Any]]:
    """Options of a run that were not at their defaults."""
    defaults = TrainConfig().to_dict()
    return [(key.replace("_", " "), value) for key, value in train.items() if key in defaults and value != defaults[key]]
