"""Combine several folders into one dataset: one row for each folder, saved as a .toml file to train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from ti_trainer.data.image_files import find_images
from ti_trainer.data.masks import find_masks
from ti_trainer.data.subsets import Subset, write_subsets
from ti_trainer.errors import ConfigError, DatasetError, TITrainerError
from ti_trainer.files import checked_name, entered_path
from ti_trainer.runs.datasets import datasets_dir, subsets_of
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.render import notice
from ti_trainer.wording import counted

MAX_ROWS = 8  # files may list more folders

ABOUT = (
    "For each folder: how often its images are used per epoch (repeats) and how much they contribute to the loss (loss "
    "weight). A mask is a grayscale image of the same name; brighter areas contribute more. Regularization images show "
    "other examples of the class, and their captions need [name]. Saving writes a .toml file and puts its path into "
    "Dataset directory."
)


class Row(NamedTuple):
    """The values of a row's widgets, or the widgets themselves."""

    folder: Any = ""
    repeats: Any = 1
    weight: Any = 1.0
    caption: Any = ""
    masks: Any = ""
    is_reg: Any = False


def panel(page: Page, images: Any) -> None:
    """Add the rows below the field `images`, the dataset directory."""
    with gr.Accordion("Several folders in one dataset", open=False, elem_id="ti_trainer_rows"):
        gr.HTML(f'<div class="ti-subdued">{ABOUT}</div>')
        rows = [_row(number) for number in range(MAX_ROWS)]
        with gr.Row(elem_classes=["ti-buttons"]):
            add = gr.Button("Add a folder", elem_id="ti_trainer_rows_add")
            load = gr.Button("Load dataset directory", elem_id="ti_trainer_rows_load")
        with gr.Row(elem_classes=["ti-tight"]):
            name = unsaved(gr.Textbox(label="Dataset name", max_lines=1, elem_id="ti_trainer_rows_name"))
            save = gr.Button("Save dataset", elem_id="ti_trainer_rows_save")
        overwrite = gr.Checkbox(label="Overwrite an existing dataset", value=False, elem_id="ti_trainer_rows_overwrite")
        message = gr.HTML(elem_id="ti_trainer_rows_message")
    unsaved(overwrite)
    with gr.Row(elem_classes=["ti-hidden"]):  # a State would keep a connection open for each page
        shown = unsaved(gr.Number(value=1, precision=0, label="rows"))
        file = unsaved(gr.Textbox(label="file of the rows"))
    boxes, widgets = [box for box, _ in rows], [widget for _, row in rows for widget in row]
    listen(add.click, lambda shown: _visible(int(shown) + 1), [shown], [shown, add, *boxes])

    def fill(values: dict[Any, Any]) -> dict[Any, Any]:
        try:
            loaded = load_rows(page, values[images])
        except (TITrainerError, OSError) as error:
            return {message: notice("error", str(error))}
        cells = [cell for row in (*loaded.rows, *[Row()] * (MAX_ROWS - len(loaded.rows))) for cell in row]
        visible = dict(zip((shown, add, *boxes), _visible(len(loaded.rows)), strict=True))
        found = {file: loaded.file, name: loaded.name, message: loaded.message}
        return {**dict(zip(widgets, map(_value, cells), strict=True)), **visible, **found}

    def keep(values: dict[Any, Any]) -> dict[Any, Any]:
        entered = [Row(*(values[widget] for widget in row)) for _, row in rows]
        try:
            new, html = save_rows(page, values[name], values[overwrite], values[file], entered)
        except (TITrainerError, OSError) as error:
            return {message: notice("error", str(error))}
        return {images: new, file: new, message: html}

    listen(load.click, fill, {images}, [*widgets, shown, add, *boxes, name, file, message])
    listen(save.click, keep, {name, overwrite, file, *widgets}, [images, file, message])


@dataclass(frozen=True)
class Loaded:
    """A dataset as rows; `file` and `name` are empty for a folder."""

    rows: list[Row]
    file: str
    name: str
    message: str


def load_rows(page: Page, images: str) -> Loaded:
    """Read a folder or a dataset file as rows; TITrainerError or OSError if that is not possible."""
    path, warnings = entered_path(images), list[str]()
    if path == Path():
        message = "Enter the path of a folder or a .toml file in Dataset directory first."
        raise DatasetError(message)
    subsets = subsets_of(page.host, path, warnings.append)
    if len(subsets) > MAX_ROWS:
        message = f"{path.name} lists {len(subsets)} folders, more than the {MAX_ROWS} rows: change it in a text editor."
        raise DatasetError(message)
    html = "".join(notice("warning", each) for each in warnings) or notice("good", f"Loaded {path}.")
    rows = [_values(subset) for subset in subsets]
    return Loaded(rows, "", "", html) if path.is_dir() else Loaded(rows, str(path.absolute()), path.stem, html)


def save_rows(page: Page, name: str, overwrite: bool, file: str, rows: Sequence[Row]) -> tuple[str, str]:
    """Write the rows as a dataset file of this name; returns its path and a message. TITrainerError or OSError if refused.

    `file` is the one that the rows were last loaded from or saved as, which may be overwritten.
    """
    name = (name or "").strip().removesuffix(".toml")
    new = datasets_dir(page.host).absolute() / f"{checked_name(name)}.toml"
    subsets = _subsets(page, file, rows)
    if new.exists() and not page.overwrite(overwrite or str(new) == file):
        message = f"A dataset named {name} already exists: choose another name, or tick Overwrite an existing dataset."
        raise ConfigError(message)
    write_subsets(new, subsets)
    count = sum(len(find_images(subset.folder)) for subset in subsets)
    message = f"Saved {counted(count, 'image')} in {counted(len(subsets), 'folder')} as {new}, now the dataset directory."
    return str(new), notice("good", message)


def _row(number: int) -> tuple[Any, Row]:
    """Add a row; returns its box and its widgets."""

    def named(name: str) -> dict[str, Any]:
        return {"elem_id": f"ti_trainer_rows_{name}_{number}", "interactive": True}

    with gr.Group(visible=number == 0) as box:
        folder = gr.Textbox(label=f"Folder {number + 1}", max_lines=1, **named("folder"))
        with gr.Row():
            repeats = gr.Number(value=1, label="Repeats", min_width=80, **named("repeats"))
            weight = gr.Number(value=1.0, label="Loss weight", min_width=80, **named("weight"))
            is_reg = gr.Checkbox(value=False, label="Regularization images", min_width=140, **named("is_reg"))
        with gr.Row():
            caption = gr.Textbox(label="Caption if there is no file", max_lines=1, min_width=160, **named("caption"))
            masks = gr.Textbox(label="Mask directory", max_lines=1, min_width=160, **named("masks"))
    return box, Row(*(unsaved(each) for each in (folder, repeats, weight, caption, masks, is_reg)))


def _values(subset: Subset) -> Row:
    masks = "" if subset.masks is None else str(subset.masks)
    return Row(str(subset.folder), subset.repeats, subset.weight, subset.class_tokens, masks, subset.is_reg)


def _subsets(page: Page, file: str, rows: Sequence[Row]) -> tuple[Subset, ...]:
    """The subsets that the rows describe, without rows that name no folder; TITrainerError if a row is invalid."""
    found, earlier = [], _earlier(page, file)
    for number, row in enumerate(rows, 1):
        if entered_path(row.folder) == Path():
            continue
        folder, masks, repeats = entered_path(row.folder).absolute(), entered_path(row.masks), row.repeats
        # Settings of the file that have no widget are kept.
        before = next((each for each in earlier if each.folder == folder), Subset(folder))
        try:
            subset = replace(
                before,
                folder=folder,
                repeats=int(repeats) if isinstance(repeats, float) and repeats.is_integer() else repeats,
                weight=row.weight,
                class_tokens=(row.caption or "").strip(),
                masks=None if masks == Path() else masks.absolute(),
                is_reg=bool(row.is_reg),
            )
            _check(page, subset)
        except TITrainerError as error:
            message = f"Folder {number}: {error}"
            raise DatasetError(message) from error
        found.append(subset)
    if not found:
        message = "There is nothing to save: enter at least one folder."
        raise DatasetError(message)
    return tuple(found)


def _earlier(page: Page, file: str) -> tuple[Subset, ...]:
    """The subsets in the file, which may be gone."""
    try:
        return subsets_of(page.host, Path(file)) if file else ()
    except (TITrainerError, OSError):
        return ()


def _check(page: Page, subset: Subset) -> None:
    """Raise TITrainerError for a folder that does not exist, has no images, or must not be read."""
    page.host.check_folder(subset.folder)
    find_images(subset.folder)
    if subset.masks is not None:
        page.host.check_folder(subset.masks)
        find_masks(subset.masks)


def _visible(count: int) -> list[Any]:
    """Updates of the number of rows, of the button that adds one, and of all boxes."""
    boxes = [gr.update(visible=number < count) for number in range(MAX_ROWS)]
    return [min(count, MAX_ROWS), gr.update(interactive=count < MAX_ROWS), *boxes]


def _value(value: Any) -> Any:
    return gr.update(value=value)
