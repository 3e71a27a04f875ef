"""The Runs panel: earlier runs with their loss curves and previews; continue one, or use one of its saved copies."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ti_trainer import formats
from ti_trainer.config.training import TrainConfig, options
from ti_trainer.embedding import averaged_name, negative_name
from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs import locks
from ti_trainer.runs.comparison import findings
from ti_trainer.runs.early_stopping import held_out_of
from ti_trainer.runs.loss_curve import MAX_COMPARED, svg
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.render import facts, images, notice, refusal
from ti_trainer.ui.thumbnails import gallery, thumbnail_uri
from ti_trainer.workbench.candidates import AVERAGE, copies_of

MAX_RUNS = 200  # in the list
COMPARISON_PX = 1100  # its longer side


@dataclass(frozen=True)
class Runs:
    """What other panels need: the list, the event of continuing a run, for `.then`, and the buttons that lead elsewhere."""

    chosen: Any
    continued: Any
    message: Any
    use_settings: Any
    compare: Any


def panel(page: Page) -> Runs:
    """Add the list and the actions on the left, and the run's curve and previews on the right."""
    with gr.Row(elem_classes=["ti-columns"]):
        with gr.Column(elem_classes=["ti-form"]):
            with gr.Row(elem_classes=["ti-tight"]):
                chosen = gr.Dropdown(
                    labels(page), label="Run", elem_id="ti_trainer_runs_chosen", allow_custom_value=True, value=None
                )
                refresh = gr.Button("↻", elem_id="ti_trainer_runs_refresh", elem_classes=["ti-icon"])
            compared = gr.Dropdown(
                labels(page),
                value=[],
                multiselect=True,
                max_choices=MAX_COMPARED,
                label="Compare with",
                info=f"Up to {MAX_COMPARED} other runs, to see their losses in the same curve.",
                elem_id="ti_trainer_runs_compared",
            )
            about = gr.HTML(elem_id="ti_trainer_runs_about")
            use_settings = gr.Button("Use these settings", elem_id="ti_trainer_runs_use_settings")
            max_steps = gr.Number(
                value=0,
                precision=0,
                label="Max steps",
                info="The step to train to when the run is continued; 0 keeps the run's own value.",
                elem_id="ti_trainer_runs_max_steps",
            )
            resume = gr.Button("Continue this run", variant="primary", elem_id="ti_trainer_runs_continue")
            about_copies = "A copy saved during the run, by step. A DreamArtist run's negative embedding is included."
            copy = gr.Dropdown([], label="Copy", info=about_copies, elem_id="ti_trainer_runs_copy")
            name = gr.Textbox(
                label="Name in the embeddings folder",
                info="Under a different name, both can be compared in prompts.",
                max_lines=1,
                elem_id="ti_trainer_runs_name",
            )
            overwrite = gr.Checkbox(label="Overwrite Old Embedding", value=False, elem_id="ti_trainer_runs_overwrite")
            compare = gr.Button("Compare copies", elem_id="ti_trainer_runs_compare")
            promote = gr.Button("Copy to the embeddings folder", elem_id="ti_trainer_runs_promote")
            message = gr.HTML(elem_id="ti_trainer_runs_message")
        with gr.Column(elem_classes=["ti-results"]):
            losses = gr.HTML(svg([]), elem_id="ti_trainer_runs_curve")
            gr.HTML('<div class="ti-line ti-subdued">Previews, all with the same seed</div>')
            previews = gr.Gallery(
                show_label=False,
                columns=4,
                height=420,
                object_fit="contain",
                elem_id="ti_trainer_runs_previews",
            )
    for each in (chosen, compared, max_steps, copy, name, overwrite):
        unsaved(each)

    def show(label: str, others: Sequence[str] | None) -> dict[Any, Any]:
        shown = details(page, label, others or ())
        return {
            about: shown.about,
            losses: shown.losses,
            previews: gr.update(value=shown.previews),
            copy: gr.update(choices=shown.copies, value=shown.copies[0] if shown.copies else None),
            name: shown.name,
            message: "",
        }

    for button in (refresh.click, compared.focus):
        listen(button, lambda: [gr.update(choices=labels(page))] * 2, [], [chosen, compared])
    listen(compared.change, lambda *labels: details(page, *labels).losses, [chosen, compared], [losses])
    listen(chosen.change, show, [chosen, compared], [about, losses, previews, copy, name, message])
    listen(copy.change, partial(suggest_name, page), [chosen, copy], [name])
    inputs = [chosen, max_steps, overwrite]
    continued = listen(resume.click, partial(continued_message, page), inputs, [message], show_progress="minimal")
    listen(promote.click, partial(promote_copy, page), [chosen, copy, name, overwrite], [message])
    return Runs(chosen, continued, message, use_settings, compare)


def opened(page: Page, label: str | None) -> Any:
    """When the tab is opened: an update of the list that selects the newest run, if none is selected."""
    listed = labels(page)
    return gr.update() if label or not listed else gr.update(choices=listed, value=listed[0])


def select_current(page: Page) -> Any:
    """An update of the list that selects the current run."""
    run = page.job.snapshot().run
    return gr.update(choices=labels(page), value=label_of(run) if run else None)


def label_of(run: Run) -> str:
    """A short label that starts with the run's id, for `find`."""
    settings = run.settings()
    if not settings:
        return f"{run.id} (unreadable)"
    max_steps = settings.get("train", {}).get("max_steps", "?")
    return f"{run.id} (step {run.step} of {max_steps})"


def labels(page: Page) -> list[str]:
    """The labels of the newest runs."""
    return [label_of(run) for run in Run.all(page.host.log_dir)[:MAX_RUNS]]


def find(page: Page, label: str) -> Run:
    """Look up a run by its label among the existing ones; what the user types is never used as a path."""
    wanted = (label or "").rsplit(" (", 1)[0]
    for run in Run.all(page.host.log_dir):
        if run.id == wanted:
            return run
    message = f"The run {wanted} no longer exists: refresh the list." if wanted else "Choose a run in the list."
    raise ConfigError(message)


@dataclass(frozen=True)
class Details:
    """What the panel shows of a run."""

    about: str = ""
    losses: str = field(default_factory=lambda: svg([]))
    previews: Sequence[Any] = ()
    copies: Sequence[str] = ()
    name: str = ""


def details(page: Page, label: str, others: Sequence[str] | None = ()) -> Details:
    """Read what the panel shows of a run, with the losses of others; the reason instead of the facts if it is unreadable."""
    if not label:
        return Details()
    try:
        run = find(page, label)
    except ConfigError as error:
        return Details(notice("error", str(error)))
    settings, rows = run.settings(), run.losses()
    if not settings:
        message = f"The run {run.path} cannot be read: {run.damage or 'settings.json is empty'}."
        return Details(notice("error", message), previews=gallery(run.previews()))
    copies = list(copies_of(run))
    rows_of_facts = [
        ("Embedding", settings.get("name")),
        ("Step", run.step),
        ("Last active", time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed_at))),
        ("Images", f"{settings.get('num_images')} in {settings.get('images')}"),
        *((("Held out for validation", len(held_out)),) if (held_out := held_out_of(run)) else ()),
        ("Model", settings.get("model")),
        *_changed_options(settings.get("train", {})),
        ("Folder", run.path),
    ]
    losses = svg(
        [(row["step"], row["loss"]) for row in rows],
        run.validation_losses(),
        [(row["step"], row["learn_rate"]) for row in rows],
        _losses_of(page, [each for each in others or () if each != label]),
    )
    name = name_for(run, copies[0] if copies else None)
    return Details(facts(rows_of_facts) + comparison(run), losses, gallery(run.previews()), copies, name)


def _losses_of(page: Page, labels: Sequence[str]) -> list[tuple[str, list[tuple[float, float]]]]:
    """The losses of these runs by id, without those that no longer exist."""
    found = []
    for label in labels[:MAX_COMPARED]:
        try:
            run = find(page, label)
        except ConfigError:
            continue
        found.append((run.id, [(row["step"], row["loss"]) for row in run.losses()]))
    return found


def comparison(run: Run) -> str:
    """What the embedding does beside what it was to learn: figures and one image; empty if the run has none."""
    path = run.path / "comparison.png"
    image = images([("Comparison", thumbnail_uri(path, COMPARISON_PX))], wide=True) if path.is_file() else ""
    return notice("info", " ".join(findings(run))) + image


def name_for(run: Run, copy: str | None) -> str:
    """A name for a copy in the embeddings folder that differs from the run's own embedding."""
    name = run.settings().get("name")
    return f"{name}-{copy.replace(AVERAGE, averaged_name(''))}" if name and copy else ""


def suggest_name(page: Page, label: str, copy: str | None) -> Any:
    """The suggested name for the selected copy."""
    try:
        return name_for(find(page, label), copy)
    except ConfigError:  # `details` reports a run that is gone
        return gr.update()


def continue_run(page: Page, label: str, max_steps: float | None, overwrite: bool) -> str:
    """Continue a run; TITrainerError if that is not possible, or would overwrite later training of the embedding."""
    run = find(page, label)
    settings = run.settings()
    try:
        values = {**run.options(), **({"max_steps": int(max_steps)} if max_steps else {})}
        name, folder = settings["name"], Path(settings["images"])
    except (KeyError, TypeError) as error:
        message = f"The settings of {run.id} are damaged or missing, so it cannot be continued."
        raise ConfigError(message) from error
    config = TrainConfig.from_dict(values)
    page.job.start(Session(page.host, name, folder, config, run, overwrite=overwrite))
    return f"Continuing {name} at step {run.step}: see the Train tab."


def continued_message(page: Page, label: str, max_steps: float | None, overwrite: bool) -> str:
    """Continue a run; the message, also if it is refused."""
    try:
        return notice("good", continue_run(page, label, max_steps, overwrite))
    except (TITrainerError, OSError) as error:
        return refusal(error)


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
        return refusal(error)
    message = f"Copied to the embeddings folder: {', '.join(map(str, files))}."
    return notice("good", message) + "".join(notice("warning", each) for each in warnings)


def _changed_options(train: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The run's options that differ from their defaults, by label."""
    defaults = TrainConfig().to_dict()
    labels_by_name = {option.name: option.label for option in options()}
    return [(labels_by_name[name], value) for name, value in train.items() if name in defaults and value != defaults[name]]
