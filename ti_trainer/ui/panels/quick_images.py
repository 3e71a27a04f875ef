"""The images of the Quick train panel: what was dropped or the folder that was entered, and how they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ti_trainer.data.caption_files import captions_among
from ti_trainer.data.image_files import list_images
from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.files import is_within, upload_folders
from ti_trainer.runs.suggestions import read_captions, suggested_text
from ti_trainer.runs.uploads import Uploads
from ti_trainer.ui.page import Page
from ti_trainer.ui.render import notice, refusal
from ti_trainer.ui.thumbnails import thumbnail_uri
from ti_trainer.wording import counted

THUMBNAILS, THUMBNAIL_PX = 12, 96


def paths_of(files: Any) -> list[Path]:
    """The paths of uploaded files, as each gradio passes them; ConfigError for one that was not uploaded."""
    found = []
    for each in files or ():
        # gradio 3 copies any file that a request names; orig_name is what it named.
        named, path = Path(getattr(each, "orig_name", None) or each), Path(getattr(each, "name", each))
        if named.is_absolute() and not any(is_within(named, folder) for folder in upload_folders()):
            message = f"{named.name} is not an uploaded file: drop the images again."
            raise ConfigError(message)
        found.append(path)
    return found


def look_at_files(page: Page, files: Any, folder: str, text: str) -> list[Any]:
    """Show what was dropped, which is used instead of a folder; suggests an init text from captions, clears the message."""
    if not files:  # removed, or a folder was entered, of which `look_at_folder` says what is wrong
        shown = about_folder(page, folder)
        return [shown if shown or not (folder or "").strip() else gr.update(), gr.update(), gr.update(), gr.update()]
    try:
        uploads = Uploads.of(paths_of(files))
    except TITrainerError as error:
        return [refusal(error), gr.update(), gr.update(), ""]
    shown = _thumbnails(uploads.images) + notice("warning", uploads.about_refused)
    was_prefilled = page.prefilled is not None and folder == str(page.prefilled.images)
    if was_prefilled and page.prefilled is not None and text == page.prefilled.init_text:
        text = ""
    return [shown, "", text or suggested_text(read_captions(uploads.captions)), ""]


def look_at_folder(page: Page, folder: str, text: str) -> list[Any]:
    """Show the images of a folder, which is used instead of what was dropped; suggests an init text from captions."""
    if not (folder or "").strip():
        return [gr.update()] * 4
    try:
        path = page.dataset_dir(folder)
        listing = list_images(path)
    except (TITrainerError, OSError) as error:
        return [refusal(error), None, gr.update(), ""]
    captions = captions_among(listing.files, listing.images)
    return [_thumbnails(listing.images), None, text or suggested_text(read_captions(captions.values())), ""]


def about_folder(page: Page, folder: str) -> str:
    """The first images of a folder; "" if there is none that can be read."""
    try:
        return _thumbnails(list_images(page.dataset_dir(folder)).images)
    except (TITrainerError, OSError):
        return ""


def _thumbnails(images: Sequence[Path]) -> str:
    """The number of images, and the first of them."""
    uris = [(path.name, thumbnail_uri(path, THUMBNAIL_PX)) for path in images[:THUMBNAILS]]
    shown = "".join(f'<img src="{uri}" alt="{escape(name)}" title="{escape(name)}">' for name, uri in uris if uri)
    more = f"<span>and {len(images) - THUMBNAILS} more</span>" if len(images) > THUMBNAILS else ""
    return f'<div class="ti-subdued">{counted(len(images), "image")}</div><div class="ti-thumbs">{shown}{more}</div>'
