"""The Share panel: shows what is published with an embedding, and writes it to a folder beside the runs."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels.compare_form import names
from ti_trainer.ui.render import facts, images, notice, refusal
from ti_trainer.ui.thumbnails import thumbnail_uri
from ti_trainer.workbench import share, share_files, share_page
from ti_trainer.workbench.share import Shared
from ti_trainer.workbench.share_files import contents, write

PREFIX = "ti_trainer_share_"
LARGEST_DOWNLOAD_BYTES = 4 * 2**20  # it is part of the page
WELCOME = (
    "Makes a folder to publish: the embedding, a card with the embedding in its image, a page that says what it is and how "
    "to install it, and the metadata that WebUIs show. No paths and no names of this computer are written."
)


def panel(page: Page) -> Any:
    """Add the form on the left, and what is written on the right; returns the list of embeddings."""
    with gr.Row(elem_classes=["ti-columns"]):
        with gr.Column(elem_classes=["ti-form"]):
            name = gr.Dropdown(names(page), value=None, label="Embedding", elem_id=PREFIX + "name", allow_custom_value=True)
            about = "What it is, in a sentence or two."
            description = gr.Textbox(label="Description", info=about, lines=2, max_lines=6, elem_id=PREFIX + "description")
            with gr.Row():
                weight = gr.Number(value=0, label="Advised weight", info="0: none.", elem_id=PREFIX + "weight")
                licence = gr.Textbox(label="License", info="Such as CC0-1.0.", max_lines=1, elem_id=PREFIX + "license")
            negative = gr.Checkbox(label="For the negative prompt", value=False, elem_id=PREFIX + "negative")
            overwrite = gr.Checkbox(
                label="Overwrite existing files",
                value=False,
                visible=not page.is_public,
                elem_id=PREFIX + "overwrite",
            )
            with gr.Row(elem_classes=["ti-buttons"]):
                show = gr.Button("Show what is included", elem_id=PREFIX + "show")
                write_files = gr.Button("Write the files", variant="primary", elem_id=PREFIX + "write")
            message = gr.HTML(notice("info", WELCOME), elem_id=PREFIX + "message")
        with gr.Column(elem_classes=["ti-results"]):
            included = gr.HTML(elem_id=PREFIX + "included")
            text = gr.Textbox(label="The page", lines=18, max_lines=40, interactive=False, elem_id=PREFIX + "text")
    fields = [name, description, weight, licence, negative]
    for each in (*fields, overwrite):
        unsaved(each)
    listen(name.focus, lambda: gr.update(choices=names(page)), [], [name])
    listen(show.click, partial(_show, page), fields, [message, included, text])
    listen(write_files.click, partial(_write, page), [*fields, overwrite], [message, included, text])
    return name


def shared_of(page: Page, name: str | None, description: str, weight: float | None, licence: str, negative: bool) -> Shared:
    """What was entered; ConfigError if it cannot be published."""
    if not (name or "").strip():
        message = "Choose an embedding in the list."
        raise ConfigError(message, "name")
    found = share.of_folder(page.host.embeddings_dir, page.host.log_dir, str(name).strip())
    shared = replace(
        found,
        for_negative=bool(negative) or found.for_negative,
        weight=float(weight or 0),
        description=(description or "").strip(),
        license=" ".join((licence or "").split()),
    )
    shared.check()
    return shared


def _show(page: Page, *entered: Any) -> list[str]:
    try:
        shared = shared_of(page, *entered)
    except (TITrainerError, OSError) as error:
        return [refusal(error), "", ""]
    return ["", _included(shared), share_page.page(shared)]


def _write(page: Page, *entered: Any) -> list[str]:
    *fields, overwrite = entered
    try:
        shared = shared_of(page, *fields)
        folder = page.host.log_dir / share_files.FOLDER / shared.name
        files = write(shared, folder, overwrite=page.overwrite(overwrite))
    except (TITrainerError, OSError) as error:
        return [refusal(error), gr.update(), gr.update()]
    written = notice("good", f"Wrote {len(files)} files to {folder.absolute()}.")
    link = "" if page.is_public else _download(shared.name, files)
    return [written + link, _included(shared), share_page.page(shared)]


def _included(shared: Shared) -> str:
    preview = images([("Preview", thumbnail_uri(shared.preview))]) if shared.preview else ""
    return facts(contents(shared).items(), names=True) + preview


def _download(name: str, files: Sequence[Path]) -> str:
    """A link that downloads all files as one; "" if they are large."""
    if sum(each.stat().st_size for each in files) > LARGEST_DOWNLOAD_BYTES:
        return ""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for each in files:
            archive.write(each, each.name)
    encoded = base64.b64encode(content.getvalue()).decode()
    link = f'<a download="{escape(name)}.zip" href="data:application/zip;base64,{encoded}">Download all as .zip</a>'
    return f'<div class="ti-file">{link}</div>'
