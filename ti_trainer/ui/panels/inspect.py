"""The Inspect panel: what is in an embedding of the folder, in a file that is dropped, or how a run's copies moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ti_trainer import formats
from ti_trainer.embedding import Embedding, negative_name
from ti_trainer.errors import ConfigError, ModelError, TITrainerError
from ti_trainer.files import is_within, upload_folders
from ti_trainer.formats import embeddings_dir
from ti_trainer.formats.naming import about_an_ordinary_word
from ti_trainer.prompts import CHUNK
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import inspect_view, runs
from ti_trainer.ui.panels.quick_train import paths_of
from ti_trainer.ui.render import notice, refusal
from ti_trainer.ui.widgets import whole
from ti_trainer.wording import counted, encodable
from ti_trainer.workbench import install
from ti_trainer.workbench.drift import drift_of
from ti_trainer.workbench.inspect import inspect
from ti_trainer.workbench.library import Library
from ti_trainer.workbench.others import embeddings_beside

PREFIX = "ti_trainer_inspect_"
MAX_LISTED = 500  # names in the list; any other can be typed
NEAREST, MOST_NEAREST = 5, 30
ABOUT_INSTALL = "Writes it into the embeddings folder, where prompts find it by this name."


@dataclass(frozen=True)
class Source:
    """What is to be inspected: uploaded files, a place in the embeddings folder, or a run's label; the first that is set."""

    files: Any = None
    place: str | None = None
    run: str | None = None


def panel(page: Page) -> Any:
    """Add the sources on the left, with installing below, and the findings on the right; returns the list of embeddings."""
    with gr.Row(elem_classes=["ti-columns"]):
        with gr.Column(elem_classes=["ti-form"]):
            files = gr.File(
                label="Embedding or card",
                file_count="multiple",
                height=126,
                elem_id=PREFIX + "files",
            )
            with gr.Row(elem_classes=["ti-tight"]):
                chosen = gr.Dropdown(
                    places(page),
                    label="Or an embedding of the folder",
                    value=None,
                    allow_custom_value=True,
                    elem_id=PREFIX + "chosen",
                )
                refresh = gr.Button("↻", elem_id=PREFIX + "refresh", elem_classes=["ti-icon"])
            run = gr.Dropdown(
                runs.labels(page),
                label="Or the copies of a run",
                info="How far they moved from the first copy.",
                value=None,
                allow_custom_value=True,
                elem_id=PREFIX + "run",
            )
            nearest = gr.Slider(
                1, MOST_NEAREST, value=NEAREST, step=1, label="Nearest tokens of each vector", elem_id=PREFIX + "nearest"
            )
            with gr.Column(visible=False, elem_id=PREFIX + "install") as installing:
                gr.HTML(f'<div class="ti-subdued">{ABOUT_INSTALL}</div>')
                name = gr.Textbox(label="Name", max_lines=1, elem_id=PREFIX + "name")
                overwrite = gr.Checkbox(label="Overwrite Old Embedding", value=False, elem_id=PREFIX + "overwrite")
                button = gr.Button("Install", variant="primary", elem_id=PREFIX + "install_button")
            message = gr.HTML(elem_id=PREFIX + "message")
        with gr.Column(elem_classes=["ti-results"]):
            findings = gr.HTML(notice("info", "Drop a file, or choose an embedding or a run."), elem_id=PREFIX + "findings")
    for each in (chosen, run, nearest, name, overwrite):
        unsaved(each)

    shown = [findings, chosen, run, installing, name, overwrite, message]

    def look(source: Source, count: float) -> list[Any]:
        return [findings_of(page, source, count)]

    def look_at_files(given: Any, count: float) -> list[Any]:
        if not given:
            return [gr.update()] * 3 + [gr.update(visible=False), gr.update(), gr.update(value=False), gr.update()]
        try:
            suggested, html = given_files(page, given, count)
        except (TITrainerError, OSError) as error:
            return [refusal(error), None, None, gr.update(visible=False), gr.update(), gr.update(value=False), ""]
        about = notice("info", "Installing is off, since others can reach this page.") if page.is_public else ""
        return [html, None, None, gr.update(visible=not page.is_public), suggested, gr.update(value=False), about]

    def look_at_place(place: str | None, count: float) -> list[Any]:
        return [*look(Source(place=place), count), None, None] if place else [gr.update()] * 3

    def look_at_run(label: str | None, count: float) -> list[Any]:
        return [*look(Source(run=label), count), None, None] if label else [gr.update()] * 3

    listen(files.change, look_at_files, [files, nearest], shown, show_progress="minimal")
    listen(chosen.change, look_at_place, [chosen, nearest], [findings, files, run], show_progress="minimal")
    listen(run.change, look_at_run, [run, nearest], [findings, files, chosen], show_progress="minimal")
    again = [files, chosen, run, nearest]
    listen(nearest.release, lambda *given: look(Source(*given[:3]), given[3])[0], again, [findings], show_progress="minimal")
    listen(refresh.click, lambda: [gr.update(choices=places(page)), gr.update(choices=runs.labels(page))], [], [chosen, run])
    listen(button.click, partial(install_message, page), [files, name, overwrite], [message], show_progress="minimal")
    return chosen


def places(page: Page) -> list[str]:
    """Where embeddings are within the folder, the first of many; any other can be typed."""
    shown = Library(page.host.embeddings_dir)
    return [shown.place_of(path) for path in embeddings_dir.embedding_files(shown.folder)[:MAX_LISTED]]


def uploaded(files: Any) -> list[Path]:
    """The paths of uploaded files; ConfigError for one that was not uploaded."""
    found = paths_of(files if isinstance(files, list) else [files] if files else [])
    for each in found:
        if not any(is_within(each, folder) for folder in upload_folders()):
            message = f"{each.name} is not an uploaded file: drop it again."
            raise ConfigError(message)
    return found


def findings_of(page: Page, source: Source, nearest: float | None = NEAREST) -> str:
    """What is to be shown of a source; the reason if it cannot be."""
    try:
        if source.files:
            return given_files(page, source.files, nearest)[1]
        if source.place:
            path = _file_at(page, source.place)
            return _report(page, formats.read(path), formats.read_negative(path), path, nearest)
        if source.run:
            run = runs.find(page, source.run)
            return inspect_view.drift(drift_of(run), run.id)
    except (TITrainerError, OSError) as error:
        return refusal(error)
    return ""


def _file_at(page: Page, place: str) -> Path:
    """The file at a place in the folder, or of an embedding's name; what the user types is never used as a path."""
    folder = page.host.embeddings_dir
    files = embeddings_dir.embedding_files(folder)
    for path in files:
        if Library(folder).place_of(path) == place:
            return path
    if found := embeddings_dir.find(folder, place.strip()):
        return found
    message = f"There is no embedding {place!r} in {folder}: choose one in the list, or drop a file."
    raise ConfigError(message)


def given_files(page: Page, files: Any, nearest: float | None = NEAREST) -> tuple[str, str]:
    """A name to install uploaded files under, and what is to be shown of them; TITrainerError if that is nothing."""
    with install.given(uploaded(files)) as given:
        html = _report(page, given.embedding, given.negative, given.path, nearest)
        return given.suggested_name, html


def _report(page: Page, embedding: Embedding, negative: Embedding | None, path: Path, nearest: float | None) -> str:
    """The facts in the file, and its vectors beside the model's vocabulary and other embeddings."""
    model, notes = None, []
    try:
        model = page.host.open_model()
    except ModelError as error:
        notes.append(f"Without a model there are no nearest tokens: {error}")
    others = embeddings_beside(page.host.embeddings_dir, embedding, path)
    if others.left_out:
        notes.append(f"Compared with the newest files of the folder; {counted(others.left_out, 'older file')} left out.")
    if embedding.num_vectors > CHUNK:
        notes.append(f"The first {CHUNK} vectors are shown.")
    first = embedding.with_vectors({encoder: each[:CHUNK] for encoder, each in embedding.vectors.items()}, embedding.step)
    found = inspect(first, model, others.embeddings, whole(nearest, "Nearest tokens of each vector", NEAREST))
    html = inspect_view.about(embedding, negative) + "".join(notice("info", each) for each in notes)
    return encodable(html + inspect_view.reports(found, model.name if model is not None else ""))


def install_message(page: Page, files: Any, name: str | None, overwrite: bool) -> str:
    """Install the uploaded files; the message, also if it is refused."""
    name = (name or "").strip()
    try:
        names = [name, negative_name(name)]
        with page.changing_embeddings("install embeddings", names), install.given(_some(uploaded(files))) as given:
            done = install.install(page.host.embeddings_dir, given, name, overwrite=bool(overwrite))
    except (TITrainerError, OSError) as error:
        hint = " Tick the box to overwrite it." if isinstance(error, ConfigError) and error.option == "overwrite" else ""
        return notice("error", f"{error}{hint}") if hint else refusal(error)
    html = notice("good", f"Installed: {', '.join(map(str, done.files))}. Write {name} in a prompt to use it.")
    html += "".join(notice("warning", each) for each in _warnings(page, name, given.embedding))
    return html + "".join(notice("info", each) for each in done.notes)


def _warnings(page: Page, name: str, embedding: Embedding) -> list[str]:
    """What may surprise about an embedding that was installed; nothing without a model."""
    try:
        model = page.host.open_model()
    except ModelError:
        return []
    if dict(model.widths) != embedding.widths:
        return [f"{model.name} cannot use it, since it is for {embedding.family} models."]
    return about_an_ordinary_word(model, name)


def _some(files: Sequence[Path]) -> Sequence[Path]:
    if not files:
        message = "There is no file yet: drop one."
        raise ConfigError(message)
    return files
