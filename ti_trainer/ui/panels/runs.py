"""The Runs panel: earlier runs with their loss curves and previews. `run_actions` continues them or uses copies."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gradio as gr

from ti_trainer.config.training import TrainConfig, options
from ti_trainer.embedding import averaged_name
from ti_trainer.errors import ConfigError
from ti_trainer.runs.comparison import findings
from ti_trainer.runs.early_stopping import held_out_of
from ti_trainer.runs.loss_curve import MAX_COMPARED, svg
from ti_trainer.runs.notes import read_label, read_notes
from ti_trainer.runs.run_folder import Run
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import run_actions, run_notes, run_previews
from ti_trainer.ui.panels.run_notes import find, label_of, labels, labels_in_bin
from ti_trainer.ui.render import facts, images, notice, ways_out
from ti_trainer.ui.thumbnails import gallery, thumbnail_uri
from ti_trainer.workbench.candidates import AVERAGE, copies_of

COMPARISON_PX = 1100  # its longer side
ITSELF = "A run cannot be compared with itself: choose another one."
NO_RUNS = notice("info", "There are no runs yet: train an embedding, and it is here.") + ways_out(
    {"Quick train": "show:Quick train", "Train": "show:Train"}
)


@dataclass(frozen=True)
class Runs:
    """What other panels need: the list, the events of continuing a run, for `.then`, and the buttons that lead elsewhere."""

    chosen: Any
    lists: list[Any]  # what `opened` fills
    continued: list[Any]
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
                info=f"Up to {MAX_COMPARED} other runs, to see their losses in one curve and their previews side by side.",
                elem_id="ti_trainer_runs_compared",
            )
            about = gr.HTML("" if labels(page) else NO_RUNS, elem_id="ti_trainer_runs_about")
            use_settings = gr.Button("Again with changes", elem_id="ti_trainer_runs_use_settings")
            max_steps = gr.Number(
                value=0,
                label="Max steps",
                info="The step to train to when the run is continued; 0 keeps the run's own value.",
                elem_id="ti_trainer_runs_max_steps",
            )
            with gr.Row(elem_classes=["ti-side-by-side"]):
                add = gr.Button("Add to queue", elem_id=run_actions.QUEUE)
                resume = gr.Button("Continue this run", variant="primary", elem_id="ti_trainer_runs_continue")
            message = gr.HTML(elem_id="ti_trainer_runs_message")
            about_copies = "A copy saved during the run, by step. A DreamArtist run's negative embedding is included."
            copy = gr.Dropdown([], label="Copy", info=about_copies, elem_id="ti_trainer_runs_copy")
            name = gr.Textbox(
                label="Name in the embeddings folder",
                info="Under a different name, both can be compared in prompts.",
                max_lines=1,
                elem_id="ti_trainer_runs_name",
            )
            overwrite = gr.Checkbox(
                label="Overwrite Old Embedding",
                value=False,
                visible=not page.is_public,
                elem_id="ti_trainer_runs_overwrite",
            )
            compare = gr.Button("Compare copies", elem_id="ti_trainer_runs_compare")
            promote = gr.Button("Copy to the embeddings folder", elem_id="ti_trainer_runs_promote")
            promoted = gr.HTML(elem_id="ti_trainer_runs_promoted")
            notes = run_notes.panel(page)
        with gr.Column(elem_classes=["ti-results"]):
            losses = gr.HTML(svg([]), elem_id="ti_trainer_runs_curve")
            side_by_side = gr.HTML(elem_id="ti_trainer_runs_side_by_side")
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
            notes.label: shown.label,
            notes.notes: shown.notes,
            losses: shown.losses,
            side_by_side: shown.side_by_side,
            previews: gr.update(value=shown.previews),
            copy: gr.update(choices=shown.copies, value=shown.copies[0] if shown.copies else None),
            name: shown.name,
            message: "",
            promoted: "",
            notes.message: "",
        }

    def beside(label: str, others: Sequence[str] | None) -> dict[Any, Any]:
        shown = details(page, label, others or ())
        return {losses: shown.losses, side_by_side: shown.side_by_side}

    listen(refresh.click, lambda: [gr.update(choices=labels(page))] * 2, [], [chosen, compared])
    listen(compared.change, beside, [chosen, compared], [losses, side_by_side])
    shown = [about, notes.label, notes.notes, losses, side_by_side, previews, copy, name, message, promoted, notes.message]
    listen(chosen.change, show, [chosen, compared], shown)
    notes.wire(page, chosen)
    listen(copy.change, partial(suggest_name, page), [chosen, copy], [name])
    actions = run_actions.Actions(page, chosen, max_steps, copy, name, overwrite, message, promoted)
    return Runs(chosen, [chosen, compared, notes.in_bin], actions.wire(resume, add, promote), message, use_settings, compare)


def opened(page: Page, label: str | None) -> list[Any]:
    """When the tab is opened: updates of the lists; the newest run is selected, if none is.

    Not when a list is clicked: in gradio 3 it then shows what was in it before.
    """
    listed = labels(page)
    newest = {} if label or not listed else {"value": listed[0]}
    return [gr.update(choices=listed, **newest), gr.update(choices=listed), gr.update(choices=labels_in_bin(page))]


def select_current(page: Page) -> Any:
    """An update of the list that selects the current run."""
    run = page.job.snapshot().run
    return gr.update(choices=labels(page), value=label_of(run) if run else None)


@dataclass(frozen=True)
class Details:
    """What the panel shows of a run."""

    about: str = ""
    losses: str = field(default_factory=lambda: svg([]))
    previews: Sequence[Any] = ()
    copies: Sequence[str] = ()
    name: str = ""
    label: str = ""
    notes: str = ""
    side_by_side: str = ""


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
        return Details(
            notice("error", message), previews=gallery(run.previews()), label=read_label(run), notes=read_notes(run)
        )
    copies, own_label, notes = list(copies_of(run)), read_label(run), read_notes(run)
    rows_of_facts = [
        ("Embedding", settings.get("name")),
        *((name, text) for name, text in (("Label", own_label), ("Notes", notes)) if text),
        ("Step", run.step),
        ("Last active", time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed_at))),
        ("Images", f"{settings.get('num_images')} in {settings.get('images')}"),
        *((("Held out for validation", len(held_out)),) if (held_out := held_out_of(run)) else ()),
        ("Model", settings.get("model")),
        *_changed_options(settings.get("train", {})),
        ("Folder", run.path),
    ]
    compared = _runs_of(page, [each for each in others or () if each != label])
    losses = svg(
        [(row["step"], row["loss"]) for row in rows],
        run.validation_losses(),
        [(row["step"], row["learn_rate"]) for row in rows],
        [(each.id, [(row["step"], row["loss"]) for row in each.losses()]) for each in compared],
    )
    itself = notice("info", ITSELF) if label in (others or ()) else ""
    table = itself + run_previews.table({_title(each): each for each in (run, *compared)})
    name = name_for(run, copies[0] if copies else None)
    about = facts(rows_of_facts) + comparison(run)
    return Details(about, losses, gallery(run.previews()), copies, name, own_label, notes, table)


def _title(run: Run) -> str:
    """A run's id, and its label if it has one."""
    return ": ".join(filter(None, (run.id, read_label(run))))


def _runs_of(page: Page, labels: Sequence[str]) -> list[Run]:
    """These runs, without those that no longer exist."""
    found = []
    for label in labels[:MAX_COMPARED]:
        with suppress(ConfigError):
            found.append(find(page, label))
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


def _changed_options(train: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The run's options that differ from their defaults, by label."""
    defaults = TrainConfig().to_dict()
    labels_by_name = {option.name: option.label for option in options()}
    return [(labels_by_name[name], value) for name, value in train.items() if name in defaults and value != defaults[name]]
