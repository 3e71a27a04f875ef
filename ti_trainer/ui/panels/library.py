"""The Library panel: the embeddings folder as cards; search, sort, rename, delete to a bin, use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gradio as gr

from ti_trainer.errors import TITrainerError
from ti_trainer.ui import prompt_fields
from ti_trainer.ui.downloads import file_link
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import library_view
from ti_trainer.ui.panels.generate import default_prompt
from ti_trainer.ui.render import notice, refusal
from ti_trainer.wording import counted, encodable
from ti_trainer.workbench import bin
from ti_trainer.workbench.library import SORTS, Library, Query, page_of

ON_PAGE = 24
SORT_LABELS = {each.capitalize(): each for each in SORTS}
# Before the list there is changed: gradio 6 creates a tab's content when it is opened.
SHOW_INSPECT = "(place) => { if (place) { window.tiTrainerShow('Inspect'); } return [place]; }"
PREFIX = "ti_trainer_library_"
ABOUT_BIN = (
    f"Deleted embeddings and their previews are in the folder {bin.FOLDER} of the embeddings folder, where WebUIs do not "
    "read them. To delete them for good, delete that folder."
)
CHOOSE = '<div class="ti-subdued">Click an embedding to see more about it.</div>'


@dataclass
class Shelf:
    """What all visitors share: what is known about the files, and the widths of models by their descriptions."""

    page: Page
    library: Library
    _widths: dict[str, Mapping[str, int]] = field(default_factory=dict)

    def widths(self) -> Mapping[str, int] | None:
        """D by text encoder of the model, if it is known without loading it."""
        try:
            return self._widths.get(self.page.host.describe())
        except TITrainerError:
            return None

    def load_widths(self) -> Mapping[str, int]:
        """The same, for which the model is opened; ModelError if there is none."""
        widths = dict(self.page.host.open_model().widths)
        self._widths[self.page.host.describe()] = widths
        return widths


@dataclass(frozen=True)
class LibraryPanel:
    """What other panels need: the place of the chosen embedding, the buttons, and the events that list the folder."""

    shelf: Shelf
    chosen: Any
    message: Any
    use: Any
    inspect: Any
    fill: Callable[[Callable[..., Any]], None]


def panel(page: Page) -> LibraryPanel:
    """Add the search, the cards, and what can be done with the chosen one."""
    shelf = Shelf(page, Library(page.host.embeddings_dir))
    with gr.Row(elem_classes=["ti-lined-up", "ti-find"]):
        search = gr.Textbox(label="Search", placeholder="Part of a name or folder", max_lines=1, elem_id=PREFIX + "search")
        sort = gr.Dropdown(list(SORT_LABELS), value="Name", label="Sort by", elem_id=PREFIX + "sort")
        usable = gr.Checkbox(label="Usable with the loaded model", value=False, min_width=250, elem_id=PREFIX + "usable")
        refresh = gr.Button("Refresh", elem_id=PREFIX + "refresh", elem_classes=["ti-beside"])
    summary = gr.HTML(elem_id=PREFIX + "summary")
    with gr.Row(elem_classes=["ti-shelf"]):
        with gr.Column():
            cards = gr.HTML(elem_id=PREFIX + "cards")
            with gr.Row(elem_classes=["ti-pager"]):
                back = gr.Button("◀", elem_id=PREFIX + "back")
                where = gr.HTML(elem_id=PREFIX + "where")
                forward = gr.Button("▶", elem_id=PREFIX + "forward")
        with gr.Column(elem_id=PREFIX + "side"):
            about = gr.HTML(CHOOSE, elem_id=PREFIX + "about")
            use = gr.Button("Use in txt2img" if page.txt2img else "Generate with it", elem_id=PREFIX + "use")
            inspect = gr.Button("Inspect", elem_id=PREFIX + "inspect")
            with gr.Row(elem_classes=["ti-lined-up"], visible=not page.is_public):
                name = gr.Textbox(label="New name", max_lines=1, elem_id=PREFIX + "name")
                rename = gr.Button("Rename", elem_id=PREFIX + "rename", elem_classes=["ti-beside"])
            delete = gr.Button("Delete", visible=not page.is_public, elem_id=PREFIX + "delete")
            message = gr.HTML(elem_id=PREFIX + "message")
            with gr.Accordion("Deleted embeddings", open=False, visible=not page.is_public):
                gr.HTML(f'<div class="ti-subdued">{ABOUT_BIN}</div>')
                with gr.Row(elem_classes=["ti-tight"]):
                    binned = gr.Dropdown([], label="In the bin", elem_id=PREFIX + "binned")
                    look = gr.Button("↻", elem_id=PREFIX + "look", elem_classes=["ti-icon"])
                restore = gr.Button("Restore", elem_id=PREFIX + "restore")
    with gr.Row(elem_classes=["ti-hidden"]):
        chosen = gr.Textbox(value="", elem_id=PREFIX + "chosen")
        number = gr.Number(value=1, precision=0, elem_id=PREFIX + "number")
    for each in (search, sort, usable, name, binned, chosen, number):
        unsaved(each)

    query, listed = [search, sort, usable, number, chosen], [summary, cards, where, number]

    def fill(event: Callable[..., Any], change: Callable[[int], int] = int) -> None:
        """List the folder at this event, first without loading the model, then with the marks that need it."""
        done = listen(event, lambda *given: view(shelf, *given, turn=change), query, listed)
        listen(done.then, lambda *given: marked(shelf, *given), query, listed)

    for event in (search.submit, search.blur, sort.change, usable.change):
        fill(event, lambda _: 1)
    fill(refresh.click)
    fill(back.click, lambda now: now - 1)
    fill(forward.click, lambda now: now + 1)
    listen(chosen.change, partial(describe, shelf), [chosen], [about, name, message])
    bins = [message, binned, chosen]
    for button, action, inputs in (
        (delete, delete_chosen, [chosen]),
        (rename, rename_chosen, [chosen, name]),
        (restore, restore_chosen, [binned]),
    ):
        done = listen(button.click, partial(_attempt, shelf, action), inputs, bins, show_progress="minimal")
        fill(done.then)
    listen(look.click, lambda: gr.update(choices=in_bin(page)), [], [binned])
    return LibraryPanel(shelf, chosen, message, use, inspect, fill)


def wire(made: LibraryPanel, inspected: Any, fields: Mapping[str, Any], to_prompt: str) -> None:
    """Put the chosen embedding into Inspect's list `inspected`, or into the prompts, which `to_prompt` shows."""
    shelf, page = made.shelf, made.shelf.page
    listen(made.inspect.click, partial(to_inspect, shelf), [made.chosen], [inspected, made.message], js=SHOW_INSPECT)
    components = {name: fields[name] for name in ("preview_prompt", "preview_negative_prompt") if name in fields}

    def use(values: dict[Any, Any]) -> dict[Any, Any]:
        name = shelf.library.find(values[made.chosen]).name  # a refusal is shown by `found`
        entered = {each: values[component] for each, component in components.items()}
        if entered.get("preview_prompt") == default_prompt(page):
            entered["preview_prompt"] = ""
        new = prompt_fields.with_name(name, entered)
        return {component: new[each] for each, component in components.items()}

    listen(made.use.click, partial(found, shelf), [made.chosen], [made.message])
    used = listen(made.use.click, use, {made.chosen, *components.values()}, list(components.values()))
    listen(getattr(used, "success", used.then), None, js=to_prompt)


def view(
    shelf: Shelf,
    search: str,
    sort: str,
    usable: bool,
    number: float | None,
    chosen: str,
    *,
    turn: Callable[[int], int] = int,
) -> list[Any]:
    """The summary, the cards, where they are in the list, and the page's number."""
    try:
        widths = shelf.load_widths() if usable else shelf.widths()
        return _view(
            shelf, Query(search or "", SORT_LABELS.get(sort, "name"), widths if usable else None), number, chosen, turn
        )
    except (TITrainerError, OSError) as error:
        return [refusal(error), "", "", 1]


def marked(shelf: Shelf, search: str, sort: str, usable: bool, number: float | None, chosen: str) -> list[Any]:
    """The same with marks that need the model, unless they are there already."""
    if usable or shelf.widths() is not None:
        return [gr.update()] * 4
    try:
        shelf.load_widths()
    except TITrainerError as error:
        summary, *rest = view(shelf, search, sort, usable, number, chosen)
        return [summary + notice("info", f"Not marked by model: {error}"), *rest]
    return view(shelf, search, sort, usable, number, chosen)


def _view(shelf: Shelf, query: Query, number: float | None, chosen: str, turn: Callable[[int], int]) -> list[Any]:
    library, folder = shelf.library, shelf.library.folder
    listing = library.listing(query)
    entries, page, pages = page_of(listing.entries, turn(int(number or 1)), ON_PAGE)
    entries = library.read(entries)
    html = library_view.cards(library, entries, shelf.widths(), chosen or "", shelf.page.host.log_dir)
    found = f"{len(listing.entries)} of {counted(listing.total, 'file')} in {folder}."
    if not listing.total:
        found = f"There are no embeddings in {folder} yet: create one, or drop a file into Inspect."
    summary = notice("info", found)
    if listing.unread:
        summary += notice("warning", f"{counted(listing.unread, 'file')} not read yet: refresh to read more of them.")
    return [summary, html, f"Page {page} of {pages}", page]


def describe(shelf: Shelf, place: str) -> list[Any]:
    """The facts about the chosen embedding, its name to be changed, and an empty message."""
    if not place:
        return [CHOOSE, "", gr.update()]
    try:
        entry = shelf.library.find(place)
    except TITrainerError as error:
        return [CHOOSE, "", refusal(error)]
    link = "" if shelf.page.is_public else file_link(entry.path)
    return [library_view.about(entry, place, shelf.widths()) + encodable(link), encodable(entry.name), ""]


def found(shelf: Shelf, place: str) -> str:
    """An empty message, or why the chosen embedding cannot be used."""
    try:
        shelf.library.find(place)
    except TITrainerError as error:
        return refusal(error)
    return ""


def to_inspect(shelf: Shelf, place: str) -> list[Any]:
    """An update of the Inspect panel's list, which also says if it is gone; a message if nothing is chosen."""
    return [gr.update(value=place), ""] if place else [gr.update(), found(shelf, place)]


Action = Callable[..., "tuple[str, list[str]]"]


def _attempt(shelf: Shelf, action: Action, *given: Any) -> list[Any]:
    """Do it; the message, the bin's list, and nothing chosen any more. If it is refused, the message alone."""
    try:
        message, warnings = action(shelf, *given)
    except (TITrainerError, OSError) as error:
        return [refusal(error), gr.update(), gr.update()]
    html = encodable(notice("good", message) + "".join(notice("warning", each) for each in warnings))
    return [html, gr.update(choices=in_bin(shelf.page), value=None), ""]


def in_bin(page: Page) -> list[str]:
    """The labels of what is in the bin; nothing on a public page."""
    return [] if page.is_public else [each.label for each in bin.deleted(page.host.embeddings_dir)]


def delete_chosen(shelf: Shelf, place: str) -> tuple[str, list[str]]:
    """Move the embedding at this place into the bin."""
    entry, folder = shelf.library.find(place), shelf.library.folder
    with shelf.page.changing_embeddings("delete embeddings", [entry.name]):
        gone = bin.delete(folder, entry.path)
    files = ", ".join(each.as_posix() for each in gone.files)
    return f"Deleted: {files}. To bring it back, open Deleted embeddings; it is in {bin.bin_of(folder) / gone.id}.", []


def rename_chosen(shelf: Shelf, place: str, name: str | None) -> tuple[str, list[str]]:
    """Rename the embedding at this place."""
    entry, warnings = shelf.library.find(place), list[str]()
    with shelf.page.changing_embeddings("rename embeddings", [entry.name]):
        new = bin.rename(shelf.library.folder, entry.path, (name or "").strip(), warnings.append)
    return f"Renamed {entry.name} to {new.stem}: {new}.", warnings


def restore_chosen(shelf: Shelf, label: str | None) -> tuple[str, list[str]]:
    """Move something back from the bin."""
    folder = shelf.library.folder
    what = bin.find(folder, label or "")
    with shelf.page.changing_embeddings("restore embeddings", ()):
        files = bin.restore(folder, what)
    return f"Restored: {', '.join(map(str, files))}.", []
