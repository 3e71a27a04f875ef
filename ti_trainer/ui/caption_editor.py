"""The panel Captions: a folder's pictures with their captions, changed in many at once or one by one, written when saved.

Knows how things look and which pictures are meant; what a change does, `data.captions` knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
from PIL import Image

from ti_trainer.data.captions import BACKUP, Captions, difference, load
from ti_trainer.data.pictures import upright
from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.render import notice
from ti_trainer.ui.thumbnails import address_of

PAGE = 60  # pictures at once
MOST_TAGS = 100  # to tick; rarer ones are found by typing
SIDE_PX, LARGE_PX = 192, 448
VIEW = 11  # components that show captions
ALL, ONE = "all that are shown", "the picture I clicked"
ADVICE = """<p>What a caption says, the prompt learns; what it leaves out, your word learns. So:</p><ul>
<li><b>leave out</b> what describes the thing to be learned: its kind, its colours, its face. Such words are better in the
<b>initialization text</b>, when you create the embedding;</li>
<li><b>say</b> everything else: the place, the light, the pose, what is worn or held, other things in the picture.</li></ul>
<p>Tags that stand in nearly all images usually describe the thing itself.</p>"""


@dataclass(frozen=True, eq=False)
class Desk:
    """What one visitor works on. `warned`: that loading would lose changes; `sent`: how often a caption went to its box."""

    captions: Captions | None = None
    shown: tuple[Path, ...] = ()
    page: int = 0
    clicked: Path | None = None
    warned: bool = False
    sent: int = 0


@dataclass(frozen=True)
class CaptionEditor:
    """What other panels need of this one: to fill in a folder, and to press Load."""

    folder: Any
    load: Any


def panel(page: Page) -> CaptionEditor:
    """Put it here: pictures on the left, what can be done with their captions on the right."""
    ui = SimpleNamespace(desk=gr.State(Desk()))
    with gr.Row(elem_classes=["ti-lined-up"]):
        ui.folder = _text(
            "Data set directory",
            "captions_folder",
            info="The folder with your pictures. Nothing in it changes until you press Save.",
            value=str(page.prefilled.images) if page.prefilled else "",
        )
        ui.load = gr.Button("Load", variant="primary", elem_id="ti_trainer_captions_load", elem_classes=["ti-beside"])
    with gr.Row(elem_classes=["ti-columns"]):
        with gr.Column(elem_classes=["ti-results"]):
            _pictures(ui)
        with gr.Column(elem_classes=["ti-form"]):
            _one(ui)
            _tags(ui)
            with gr.Accordion("Search and replace", open=False):
                _search(ui, regex="filename_word_regex" not in page.host.fixed)
            with gr.Accordion("What belongs into captions? Tags in nearly all images", open=False):
                _common(ui)
    for each in vars(ui).values():
        unsaved(each)
    _wire(page, ui)
    return CaptionEditor(ui.folder, ui.load)


def _pictures(ui: SimpleNamespace) -> None:
    with gr.Row():
        filters = {"label": "Show those with all of", "multiselect": True, "elem_id": "ti_trainer_captions_with"}
        ui.all_of = gr.Dropdown([], **filters)
        filters |= {"label": "and with none of", "elem_id": "ti_trainer_captions_without"}
        ui.none_of = gr.Dropdown([], **filters)
    ui.bare = gr.Checkbox(label="Only pictures without a caption", value=False, elem_id="ti_trainer_captions_bare")
    ui.gallery = gr.Gallery(
        label="Pictures",
        show_label=False,
        columns=4,
        height=860,
        object_fit="contain",
        allow_preview=False,
        elem_id="ti_trainer_captions_gallery",
        elem_classes=["ti-captioned"],
    )
    with gr.Row(elem_classes=["ti-buttons", "ti-pager"]):
        ui.back = gr.Button("◀", elem_id="ti_trainer_captions_back")
        ui.place = gr.HTML(elem_id="ti_trainer_captions_place")
        ui.forth = gr.Button("▶", elem_id="ti_trainer_captions_forth")


def _one(ui: SimpleNamespace) -> None:
    ui.summary = gr.HTML(_summary(Desk()), elem_id="ti_trainer_captions_summary")
    with gr.Row(elem_classes=["ti-buttons"]):
        ui.undo = gr.Button("Undo", elem_id="ti_trainer_captions_undo")
        ui.redo = gr.Button("Redo", elem_id="ti_trainer_captions_redo")
        ui.save = gr.Button("Save", variant="primary", elem_id="ti_trainer_captions_save")
    ui.said = gr.HTML(elem_id="ti_trainer_captions_said")
    ui.large = gr.HTML(_large(Desk()), elem_id="ti_trainer_captions_large")
    ui.text = _text("Caption of the picture clicked", "captions_text", lines=3, max_lines=8)
    with gr.Row(elem_classes=["ti-hidden"]):
        ui.sent = _text("Which caption that is", "captions_sent", value="0")
    with gr.Row(elem_classes=["ti-buttons"]):
        ui.previous = gr.Button("◀ Previous", elem_id="ti_trainer_captions_previous")
        ui.apply = gr.Button("Apply", elem_id="ti_trainer_captions_apply")
        ui.next = gr.Button("Next ▶", elem_id="ti_trainer_captions_next")


def _tags(ui: SimpleNamespace) -> None:
    ui.target = gr.Radio([ALL, ONE], value=ALL, label="Change the captions of", elem_id="ti_trainer_captions_target")
    with gr.Row(elem_classes=["ti-lined-up"]):
        ui.new = _text("New tags", "captions_new", placeholder="outdoors, grass", scale=2)
        ui.add = gr.Button("Add at the end", elem_id="ti_trainer_captions_add", elem_classes=["ti-beside"])
        ui.add_front = gr.Button("Add in front", elem_id="ti_trainer_captions_add_front", elem_classes=["ti-beside"])
    ui.ticked = gr.CheckboxGroup(
        [],
        label="Tags of what is shown, and in how many pictures: tick those you mean",
        elem_id="ti_trainer_captions_tags",
        elem_classes=["ti-tags"],
    )
    ui.find = _text("Find a tag", "captions_find", placeholder="a part of it")
    with gr.Row(elem_classes=["ti-buttons"]):
        ui.remove = gr.Button("Remove ticked", elem_id="ti_trainer_captions_remove")
        ui.to_front = gr.Button("Move ticked to front", elem_id="ti_trainer_captions_to_front")
    with gr.Row(elem_classes=["ti-lined-up"]):
        ui.name = _text("New name", "captions_name", scale=2)
        ui.rename = gr.Button("Rename ticked", elem_id="ti_trainer_captions_rename", elem_classes=["ti-beside"])
    ui.told = gr.HTML(elem_id="ti_trainer_captions_told")


def _search(ui: SimpleNamespace, *, regex: bool) -> None:
    with gr.Row():
        ui.search = _text("Search", "captions_search")
        ui.by = _text("Replace by", "captions_by")
    info = r"Such as (\w+) hair; in the replacement, \1 is what the first ( ) found."
    ui.regex = gr.Checkbox(
        label="Regular expression", info=info, value=False, visible=regex, elem_id="ti_trainer_captions_regex"
    )
    with gr.Row(elem_classes=["ti-buttons"]):
        ui.replace = gr.Button("Replace", elem_id="ti_trainer_captions_replace")
        ui.names = gr.Button("Take file names where there is no caption", elem_id="ti_trainer_captions_names")


def _common(ui: SimpleNamespace) -> None:
    gr.HTML(f'<div class="ti-advice">{ADVICE}</div>')
    ui.look = gr.Button("Find tags in nearly all images", elem_id="ti_trainer_captions_look")
    ui.common = gr.CheckboxGroup([], label="Tags in nearly all images", elem_id="ti_trainer_captions_common", visible=False)
    ui.drop = gr.Button("Remove these from all images", elem_id="ti_trainer_captions_drop", visible=False)


def _text(label: str, name: str, **given: Any) -> gr.Textbox:
    return gr.Textbox(label=label, elem_id=f"ti_trainer_{name}", **{"max_lines": 1, **given})


def _wire(page: Page, ui: SimpleNamespace) -> None:
    filters = [ui.all_of, ui.none_of, ui.bare]
    given = [ui.desk, ui.text, ui.sent, ui.find, ui.ticked, *filters]  # what nearly every handler is given
    view = [ui.desk, ui.said, ui.gallery, ui.place, ui.summary, ui.large, ui.text, ui.save, ui.ticked, ui.sent, ui.told]
    outputs = [*view, ui.all_of, ui.none_of]

    def act(button: Any, change: Callable[..., Captions], *more: Any, target: Any = ui.target) -> Any:
        """`change` is given the captions, the pictures that are meant, the ticked tags, and the values of `more`."""
        return listen(button.click, partial(_acted, change), [*given, target, *more], outputs, show_progress="minimal")

    for event in (ui.load.click, ui.folder.submit):
        listen(event, partial(_opened, page), [*given, ui.folder], outputs, show_progress="minimal")
    listen(ui.gallery.select, _clicked, given[:5], view)
    listen(ui.find.change, _ticks, [ui.desk, ui.find, ui.ticked], [ui.ticked])
    for each in filters:
        listen(each.change, _sifted, given, view, show_progress="minimal")
    for button, by, pages in ((ui.back, -1, True), (ui.forth, 1, True), (ui.previous, -1, False), (ui.next, 1, False)):
        listen(button.click, partial(_went, by, pages), given[:5], view, show_progress="minimal")
    for button, change in ((ui.apply, _applied), (ui.undo, _undone), (ui.redo, _redone), (ui.save, _saved)):
        listen(button.click, partial(_changed, change), given, outputs, show_progress="minimal")
    act(ui.add, lambda captions, chosen, _, tags: captions.add(chosen, _given(tags)), ui.new)
    act(ui.add_front, lambda captions, chosen, _, tags: captions.add(chosen, _given(tags), front=True), ui.new)
    act(ui.remove, lambda captions, chosen, ticked: captions.remove(chosen, _some(ticked)))
    act(ui.to_front, lambda captions, chosen, ticked: captions.to_front(chosen, _some(ticked)))
    act(ui.rename, _renamed, ui.name)
    act(ui.replace, partial(_replaced, page), ui.search, ui.by, ui.regex)
    act(ui.names, lambda captions, chosen, _: captions.take_names(chosen))
    dropped = act(
        ui.drop,
        lambda captions, _chosen, _, common: captions.remove(captions.pictures, _some(common)),
        ui.common,
        target=gr.State(ALL),
    )
    listen(dropped.then, lambda desk: _looked(desk)[1:], [ui.desk], [ui.common, ui.drop])
    listen(ui.look.click, _looked, [ui.desk], [ui.told, ui.common, ui.drop])


def _acted(change: Callable[..., Captions], *given: Any) -> list[Any]:
    *base, target = given[:9]

    def changed(desk: Desk) -> tuple[Desk, str]:
        captions = _loaded(desk)
        new = change(captions, _meant(desk, target), base[4], *given[9:])
        return replace(desk, captions=new), _told(captions, new)

    updates = _changed(changed, *base)
    updates[1], updates[VIEW - 1] = "", updates[1]  # said beside the buttons for many captions, not at the top
    return updates


def _clicked(desk: Desk, text: str, sent: str, find: str, ticked: list[str], event: gr.SelectData) -> list[Any]:
    number = desk.page * PAGE + event.index
    picture = desk.shown[number] if number < len(desk.shown) else None
    return _seen(replace(_committed(desk, text, sent), clicked=picture), desk, find, ticked)


def _went(by: int, pages: bool, desk: Desk, text: str, sent: str, find: str, ticked: list[str]) -> list[Any]:
    return _seen(_moved(_committed(desk, text, sent), by, pages=pages), desk, find, ticked)


def _sifted(desk: Desk, text: str, sent: str, find: str, ticked: list[str], *filters: Any) -> list[Any]:
    new = _filtered(_committed(desk, text, sent), filters)
    if (new.captions, new.shown) == (desk.captions, desk.shown):  # gradio 6 calls it a change when choices are replaced, too
        return [gr.update() for _ in range(VIEW)]
    return _seen(new, desk, find, ticked)


def _opened(page: Page, *given: Any) -> list[Any]:
    """Load the folder; changes that are not saved yet are lost only if Load is pressed twice."""
    *base, folder = given
    warned = base[0].warned

    def loaded(desk: Desk) -> tuple[Desk, str]:
        left = len(desk.captions.unsaved) if desk.captions else 0
        if left and not warned:
            said = f"{_counted(left, 'caption')} changed and not saved: Save first, or press Load once more to give that up."
            return replace(desk, warned=True), notice("warning", said)
        path = Path((folder or "").strip().strip('"'))
        if path == Path():
            message = "Data set directory: found nothing, expected a folder with pictures."
            raise ConfigError(message)
        page.host.check_folder(path)
        words = {each: page.host.defaults.get(f"filename_{each}") for each in ("word_regex", "join_string")}
        captions = load(path, **{name: value for name, value in words.items() if value is not None})
        return Desk(captions), ""

    return _changed(loaded, *base)


def _changed(
    change: Callable[[Desk], tuple[Desk, str]],
    before: Desk,
    text: str,
    sent: str,
    find: str,
    ticked: list[str],
    *filters: Any,
) -> list[Any]:
    """Updates of all outputs after a change of the captions, or the reason why there was none."""
    desk = _committed(before, text, sent)
    try:
        new, said = change(desk)
    except (TITrainerError, OSError) as error:
        new, said = desk, notice("error", str(error))
    new = _filtered(new, filters, stay=True)
    choices = [tag for tag, _ in new.captions.counts()] if new.captions else []
    lists = [gr.update(choices=list(dict.fromkeys([*choices, *(each or [])])), value=each or []) for each in filters[:2]]
    return [*_seen(new, before, find, ticked, said), *lists]


def _seen(desk: Desk, before: Desk, find: str, ticked: list[str], said: str = "") -> list[Any]:
    """Updates of what shows captions; the gallery, which is much to send, only if it has changed."""
    same = before.captions is desk.captions and (before.shown, before.page) == (desk.shown, desk.page)
    pages = max(1, -(-len(desk.shown) // PAGE))
    first = desk.page * PAGE
    here = desk.shown[first : first + PAGE]
    place = f"{first + 1} to {first + len(here)} of {len(desk.shown)}" if pages > 1 else ""
    unsaved_now = len(desk.captions.unsaved) if desk.captions else 0
    text = (desk.captions.text(desk.clicked) or "") if desk.captions and desk.clicked else ""
    desk = replace(desk, sent=before.sent + 1)
    return [
        desk,
        said,
        gr.update() if same else gr.update(value=_items(desk.captions, here)),
        f'<div class="ti-line ti-subdued">{place}</div>',
        _summary(desk),
        _large(desk),
        gr.update(value=text),
        gr.update(value=f"Save {_counted(unsaved_now, 'change')}" if unsaved_now else "Save"),
        gr.update() if same else _ticks(desk, find, ticked),
        str(desk.sent),
        "",
    ]


def _committed(desk: Desk, text: str, sent: str) -> Desk:
    """With what was typed for the picture clicked: going on to another must not lose it.

    Who presses two buttons at once gives us the caption from before the first: that was not typed.
    """
    captions = desk.captions
    if captions and desk.clicked and sent == str(desk.sent):
        captions = captions.edit(desk.clicked, text or "")
    return replace(desk, captions=captions, warned=False)


def _filtered(desk: Desk, filters: Sequence[Any], *, stay: bool = False) -> Desk:
    """With the pictures that the filters let through; on the same page of them, if that is wished."""
    if desk.captions is None:
        return desk
    all_of, none_of, bare = filters
    shown = desk.captions.having(all_of or (), none_of or (), without_caption=bool(bare))
    page = min(desk.page, max(0, len(shown) - 1) // PAGE) if stay or shown == desk.shown else 0
    return replace(desk, shown=shown, page=page)


def _moved(desk: Desk, by: int, *, pages: bool) -> Desk:
    """At the page, or at the picture, before or after."""
    if not desk.shown:
        return desk
    last = len(desk.shown) - 1
    if pages:
        return replace(desk, page=min(max(desk.page + by, 0), last // PAGE))
    at = desk.shown.index(desk.clicked) + by if desk.clicked in desk.shown else desk.page * PAGE
    at = min(max(at, 0), last)
    return replace(desk, clicked=desk.shown[at], page=at // PAGE)


def _applied(desk: Desk) -> tuple[Desk, str]:
    """What was typed is taken over by every handler; this one does no more."""
    return replace(desk, captions=_loaded(desk)), ""


def _undone(desk: Desk) -> tuple[Desk, str]:
    new = _loaded(desk).undo()
    return replace(desk, captions=new), "" if new is not desk.captions else notice("info", "There is nothing to undo.")


def _redone(desk: Desk) -> tuple[Desk, str]:
    new = _loaded(desk).redo()
    return replace(desk, captions=new), "" if new is not desk.captions else notice("info", "There is nothing to redo.")


def _saved(desk: Desk) -> tuple[Desk, str]:
    captions = _loaded(desk)
    if not captions.unsaved:
        return desk, notice("info", "There is nothing to save: all is on disk as it is here.")
    captions, saved = captions.save()
    said = f"Saved: {_counted(saved.written, 'caption')} written" if saved.written else "Saved"
    said += f", {saved.removed} taken away." if saved.removed else "."
    if saved.backup:
        said += f" What was there before is kept in {BACKUP}/{saved.backup.name}."
    return replace(desk, captions=captions), notice("good", said)


def _renamed(captions: Captions, chosen: Sequence[Path], ticked: list[str], name: str) -> Captions:
    if len(ticked or []) != 1:
        message = f"Rename: found {len(ticked or [])} ticked tags, expected one. Tick the one to be renamed."
        raise ConfigError(message)
    return captions.rename(chosen, ticked[0], name or "")


def _replaced(
    page: Page, captions: Captions, chosen: Sequence[Path], _: list[str], search: str, by: str, regex: bool
) -> Captions:
    if regex and "filename_word_regex" in page.host.fixed:
        message = "Regular expressions are not for visitors here: one can keep the program busy for ever."
        raise ConfigError(message)
    return captions.replace(chosen, search or "", by or "", regex=regex)


def _looked(desk: Desk) -> list[Any]:
    """Tags of nearly all images, ticked, and a button that takes them away."""
    try:
        found = _loaded(desk).common()
    except ConfigError as error:
        return [notice("error", str(error)), gr.update(), gr.update()]
    if not found:
        hidden = gr.update(visible=False)
        return [notice("good", "No tag stands in nearly all images (in 9 of 10 or more)."), hidden, hidden]
    choices = [(f"{tag} ({share:.0%})", tag) for tag, share in found]
    return ["", gr.update(choices=choices, value=[tag for tag, _ in found], visible=True), gr.update(visible=True)]


def _loaded(desk: Desk) -> Captions:
    if desk.captions is None:
        message = "Load a folder first: name it above and press Load."
        raise ConfigError(message)
    return desk.captions


def _meant(desk: Desk, target: str) -> Sequence[Path]:
    if target != ONE:
        return desk.shown
    if desk.clicked is None:
        message = "Click a picture first, or choose to change all that are shown."
        raise ConfigError(message)
    return [desk.clicked]


def _given(tags: str) -> str:
    if not (tags or "").strip(" ,"):
        message = "New tags: found nothing, expected one or more, separated by commas."
        raise ConfigError(message)
    return tags


def _some(ticked: list[str]) -> list[str]:
    if not ticked:
        message = "Tick the tags that you mean first."
        raise ConfigError(message)
    return ticked


def _told(before: Captions, after: Captions) -> str:
    count = difference(before, after)
    if not count:
        return notice("info", "Nothing to change there: these captions are as you want them already.")
    said = (
        f"Changed {_counted(count, 'caption')}. Unsaved now: {len(after.unsaved)}; nothing is written until you press Save."
    )
    return notice("good", said)


def _ticks(desk: Desk, find: str, ticked: list[str]) -> Any:
    """The tags of what is shown, with the numbers of their pictures; those that are ticked stay so while they are there."""
    counts = desk.captions.counts(desk.shown) if desk.captions else []
    part = (find or "").strip().lower()
    there = [each for each in counts if part in each[0].lower() or each[0] in (ticked or [])][:MOST_TAGS]
    still = [tag for tag, _ in there if tag in (ticked or [])]
    return gr.update(choices=[(f"{tag} ({count})", tag) for tag, count in there], value=still)


def _items(captions: Captions, pictures: Sequence[Path]) -> list[tuple[Image.Image, str]]:
    with ThreadPoolExecutor(4) as pool:
        return list(zip(pool.map(small, pictures), (_label(captions, each) for each in pictures), strict=True))


def _label(captions: Captions, picture: Path) -> str:
    text = captions.text(picture)
    return f"[file name] {captions.names[picture.stem]}" if text is None else text or "[empty]"


def small(picture: Path, side: int = SIDE_PX) -> Image.Image:
    """A small version; grey where the file cannot be read, so that the others keep their places."""
    try:
        return _read(picture, picture.stat().st_mtime_ns, side)
    except Exception:  # a damaged file provokes anything
        return Image.new("RGB", (side, side), "grey")


@lru_cache(maxsize=480)
def _read(picture: Path, _changed: int, side: int) -> Image.Image:
    with Image.open(picture) as opened:
        small = upright(opened, (side, side)).convert("RGB")
    small.thumbnail((side, side))
    return small


def _large(desk: Desk) -> str:
    if desk.captions is None or desk.clicked is None:
        return '<div class="ti-large ti-subdued">Click a picture to see it here and to write its caption.</div>'
    picture = desk.clicked
    words = escape(desk.captions.names[picture.stem])
    said = "" if desk.captions.text(picture) is not None else f" · no caption: the file name is trained on, “{words}”"
    address = address_of(small(picture, LARGE_PX))
    line = f'<div class="ti-line ti-subdued" title="{escape(str(picture))}">{escape(picture.name)}{said}</div>'
    return f'<div class="ti-large"><img src="{address}" alt="{escape(picture.name)}"></div>{line}'


def _summary(desk: Desk) -> str:
    if desk.captions is None:
        return '<div class="ti-line ti-subdued">No folder is loaded.</div>'
    captions, count = desk.captions, len(desk.captions.unsaved)
    bare = sum(captions.text(picture) is None for picture in captions.pictures)
    parts = [
        f"<b>{_counted(count, 'unsaved change')}</b>" if count else "no unsaved changes",
        _counted(len(captions.pictures), "picture"),
        f"{len(desk.shown)} shown" if len(desk.shown) < len(captions.pictures) else "",
        f"{bare} without a caption" if bare else "",
    ]
    return f'<div class="ti-line ti-numbers">{" · ".join(filter(None, parts))}</div>'


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
