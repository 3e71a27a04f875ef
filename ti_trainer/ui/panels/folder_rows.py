"""Several folders in one dataset, as rows: what they hold is kept as a .toml file, which is then what is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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

MOST = 8  # rows; files may list more folders
EMPTY = ("", 1, 1.0, "", "", False)  # a row, in the order of its widgets
ABOUT = (
    "Each folder with how often its images come up in an epoch and how much they count. A mask is a grey image of the "
    "same name: what is brighter counts more. Regularisation images show the class of the thing, and need [name] in their "
    "captions. Saved as a file, which is then the dataset directory above."
)


def panel(page: Page, images: Any) -> None:
    """Lay it out below the entry `images`, which says what is trained on."""
    with gr.Accordion("Several folders in one dataset", open=False, elem_id="ti_trainer_rows"):
        gr.HTML(f'<div class="ti-subdued">{ABOUT}</div>')
        rows = [_row(number) for number in range(MOST)]
        with gr.Row(elem_classes=["ti-buttons"]):
            add = gr.Button("Add a folder", elem_id="ti_trainer_rows_add")
            load = gr.Button("Load", elem_id="ti_trainer_rows_load")
        with gr.Row(elem_classes=["ti-tight"]):
            name = unsaved(gr.Textbox(label="Name of the dataset", max_lines=1, elem_id="ti_trainer_rows_name"))
            save = gr.Button("Save dataset", elem_id="ti_trainer_rows_save")
        overwrite = gr.Checkbox(label="Overwrite an old dataset", value=False, elem_id="ti_trainer_rows_overwrite")
        said = gr.HTML(elem_id="ti_trainer_rows_said")
    unsaved(overwrite)
    with gr.Row(elem_classes=["ti-hidden"]):  # a State would keep a connection open for each page
        shown = unsaved(gr.Number(value=1, precision=0, label="rows"))
        kept = unsaved(gr.Textbox(label="file of the rows"))
    boxes, widgets = [box for box, _ in rows], [widget for _, row in rows for widget in row]
    listen(add.click, more, [shown], [shown, add, *boxes])
    filled = [*widgets, shown, add, *boxes, name, kept, said]
    listen(load.click, lambda *given: loaded(page, *given), [images], filled)
    inputs = [name, overwrite, kept, *widgets]
    listen(save.click, lambda *given: saved(page, *given), inputs, [images, kept, said])


def more(shown: int) -> list[Any]:
    """One more row is to be seen. Updates of `shown`, of the button and of every row's box."""
    return _showing(min(int(shown) + 1, MOST))


def loaded(page: Page, images: str) -> list[Any]:
    """Put what the dataset directory names, a folder or a file, into the rows. Updates of all that is filled in."""
    path, told = entered_path(images), list[str]()
    try:
        if path == Path():
            message = "Name a folder, or a .toml file, in Dataset directory above."
            raise DatasetError(message)
        subsets = subsets_of(page.host, path, told.append)
        if len(subsets) > MOST:
            message = f"{path.name} lists {len(subsets)} folders, and here is room for {MOST}: change it in a text editor."
            raise DatasetError(message)
    except (TITrainerError, OSError) as error:
        unchanged = [gr.update()] * (MOST * (len(EMPTY) + 1) + 2)
        return [*unchanged, gr.update(), gr.update(), notice("error", str(error))]
    values = [value for subset in subsets for value in _values(subset)] + list(EMPTY) * (MOST - len(subsets))
    from_file = not path.is_dir()
    kept = str(path.absolute()) if from_file else ""
    said = "".join(notice("warning", each) for each in told) or notice("good", f"Loaded: {path}.")
    return [*map(_value, values), *_showing(len(subsets)), _value(path.stem if from_file else ""), _value(kept), said]


def saved(page: Page, name: str, overwrite: bool, kept: str, *cells: Any) -> list[Any]:
    """Write the rows under this name and put the file into the dataset directory. Updates of that, `kept` and `said`.

    `kept` is the file that the rows were loaded from or saved as last, which may be overwritten.
    """
    try:
        name = (name or "").strip().removesuffix(".toml")
        file = datasets_dir(page.host).absolute() / f"{checked_name(name)}.toml"
        subsets = _subsets(page, kept, cells)
        if file.exists() and not overwrite and str(file) != kept:
            message = f"There is a dataset {name} already: choose another name, or tick Overwrite an old dataset."
            raise ConfigError(message)
        write_subsets(file, subsets)
    except (TITrainerError, OSError) as error:
        return [gr.update(), gr.update(), notice("error", str(error))]
    count = sum(len(find_images(subset.folder)) for subset in subsets)
    said = notice("good", f"Saved {count} images in {len(subsets)} folders as {file}: this is the dataset directory now.")
    return [str(file), str(file), said]


def _row(number: int) -> tuple[Any, list[Any]]:
    """The box of a row and its widgets, in the order of EMPTY."""

    def named(name: str) -> dict[str, Any]:
        return {"elem_id": f"ti_trainer_rows_{name}_{number}", "interactive": True}

    with gr.Group(visible=number == 0) as box:
        folder = gr.Textbox(label=f"Folder {number + 1}", max_lines=1, **named("folder"))
        with gr.Row():
            repeats = gr.Number(value=1, precision=0, label="Repeats", min_width=80, **named("repeats"))
            weight = gr.Number(value=1.0, label="Loss weight", min_width=80, **named("weight"))
            is_reg = gr.Checkbox(value=False, label="Regularisation images", min_width=140, **named("is_reg"))
        with gr.Row():
            caption = gr.Textbox(label="Caption where there is no file", max_lines=1, min_width=160, **named("caption"))
            masks = gr.Textbox(label="Mask directory", max_lines=1, min_width=160, **named("masks"))
    return box, [unsaved(each) for each in (folder, repeats, weight, caption, masks, is_reg)]


def _values(subset: Subset) -> tuple[Any, ...]:
    """What its row holds, in the order of EMPTY."""
    masks = "" if subset.masks is None else str(subset.masks)
    return (str(subset.folder), subset.repeats, subset.weight, subset.class_tokens, masks, subset.is_reg)


def _subsets(page: Page, kept: str, cells: Sequence[Any]) -> tuple[Subset, ...]:
    """What the rows hold; TITrainerError, which names the row, if one cannot be. Rows without a folder are left out."""
    found, earlier = [], _earlier(page, kept)
    for number in range(MOST):
        folder, repeats, weight, caption, masks, is_reg = cells[number * len(EMPTY) : (number + 1) * len(EMPTY)]
        if entered_path(folder) == Path():
            continue
        place = entered_path(folder).absolute()
        # What a file says besides has no widget here, and is kept.
        before = next((each for each in earlier if each.folder == place), Subset(place))
        try:
            subset = replace(
                before,
                folder=place,
                repeats=int(repeats) if isinstance(repeats, float) and repeats.is_integer() else repeats,
                weight=weight,
                class_tokens=(caption or "").strip(),
                masks=None if entered_path(masks) == Path() else entered_path(masks).absolute(),
                is_reg=bool(is_reg),
            )
            _check(page, subset)
        except TITrainerError as error:
            message = f"Folder {number + 1}: {error}"
            raise DatasetError(message) from error
        found.append(subset)
    if not found:
        message = "There is nothing to save yet: name at least one folder."
        raise DatasetError(message)
    return tuple(found)


def _earlier(page: Page, kept: str) -> tuple[Subset, ...]:
    """What the file of the rows lists; nothing if it is gone."""
    try:
        return subsets_of(page.host, Path(kept)) if kept else ()
    except (TITrainerError, OSError):
        return ()


def _check(page: Page, subset: Subset) -> None:
    """Refuse a folder that may not be read, is not there or holds no images."""
    page.host.check_folder(subset.folder)
    find_images(subset.folder)
    if subset.masks is not None:
        page.host.check_folder(subset.masks)
        find_masks(subset.masks)


def _showing(count: int) -> list[Any]:
    """Updates of `shown`, of the button and of every row's box, so that this many rows are seen."""
    boxes = [gr.update(visible=number < count) for number in range(MOST)]
    return [count, gr.update(interactive=count < MOST), *boxes]


def _value(value: Any) -> Any:
    return gr.update(value=value)
