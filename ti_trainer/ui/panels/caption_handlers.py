"""What the caption editor does when it is used: each handler takes what one visitor works on and says what is seen then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ti_trainer.data.caption_edits import BACKUP, Captions, difference, load
from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.ui.page import Page
from ti_trainer.ui.render import notice
from ti_trainer.ui.thumbnails import address_of, small
from ti_trainer.wording import counted

PAGE = 60  # images at once
MOST_TAGS = 100  # to tick; rarer ones are found by typing
LARGE_PX = 448
VIEW = 11  # components that show captions
ALL, ONE = "all that are shown", "the image I clicked"


@dataclass(frozen=True, eq=False)
class EditorState:
    """What one visitor works on. `warned`: that loading would lose changes; `sent`: how often a caption went to its box."""

    captions: Captions | None = None
    shown: tuple[Path, ...] = ()
    page: int = 0
    clicked: Path | None = None
    warned: bool = False
    sent: int = 0


def acted(change: Callable[..., Captions], *given: Any) -> list[Any]:
    """Change the captions of many images."""
    *base, target = given[:9]

    def many_changed(editor: EditorState) -> tuple[EditorState, str]:
        captions = _loaded(editor)
        new = change(captions, _meant(editor, target), base[4], *given[9:])
        return replace(editor, captions=new), _told(captions, new)

    updates = changed(many_changed, *base)
    updates[1], updates[VIEW - 1] = "", updates[1]  # said beside the buttons for many captions, not at the top
    return updates


def clicked(editor: EditorState, text: str, sent: str, find: str, ticked: list[str], event: gr.SelectData) -> list[Any]:
    """Take the image that was clicked to hand."""
    number = editor.page * PAGE + event.index
    image = editor.shown[number] if number < len(editor.shown) else None
    return _seen(replace(_committed(editor, text, sent), clicked=image), editor, find, ticked)


def went(by: int, pages: bool, editor: EditorState, text: str, sent: str, find: str, ticked: list[str]) -> list[Any]:
    """To the next or previous image, or page of images."""
    return _seen(_moved(_committed(editor, text, sent), by, pages=pages), editor, find, ticked)


def sifted(editor: EditorState, text: str, sent: str, find: str, ticked: list[str], *filters: Any) -> list[Any]:
    """Show those that the filters let through."""
    new = _filtered(_committed(editor, text, sent), filters)
    if (new.captions, new.shown) == (
        editor.captions,
        editor.shown,
    ):  # gradio 6 calls it a change when choices are replaced, too
        return [gr.update() for _ in range(VIEW)]
    return _seen(new, editor, find, ticked)


def opened(page: Page, *given: Any) -> list[Any]:
    """Load the folder; changes that are not saved yet are lost only if Load is pressed twice."""
    *base, folder = given
    warned = base[0].warned

    def loaded(editor: EditorState) -> tuple[EditorState, str]:
        left = len(editor.captions.unsaved) if editor.captions else 0
        if left and not warned:
            said = f"{counted(left, 'caption')} changed and not saved: Save first, or press Load once more to give that up."
            return replace(editor, warned=True), notice("warning", said)
        path = page.dataset_dir(folder)
        words = {each: page.host.defaults.get(f"filename_{each}") for each in ("word_regex", "join_string")}
        captions = load(path, **{name: value for name, value in words.items() if value is not None})
        return EditorState(captions), ""

    return changed(loaded, *base)


def changed(
    change: Callable[[EditorState], tuple[EditorState, str]],
    before: EditorState,
    text: str,
    sent: str,
    find: str,
    ticked: list[str],
    *filters: Any,
) -> list[Any]:
    """Updates of all outputs after a change of the captions, or the reason why there was none."""
    editor = _committed(before, text, sent)
    try:
        new, said = change(editor)
    except (TITrainerError, OSError) as error:
        new, said = editor, notice("error", str(error))
    new = _filtered(new, filters, stay=True)
    choices = [tag for tag, _ in new.captions.counts()] if new.captions else []
    lists = [gr.update(choices=list(dict.fromkeys([*choices, *(each or [])])), value=each or []) for each in filters[:2]]
    return [*_seen(new, before, find, ticked, said), *lists]


def _seen(editor: EditorState, before: EditorState, find: str, ticked: list[str], said: str = "") -> list[Any]:
    """Updates of what shows captions; the gallery, which is much to send, only if it has changed."""
    same = before.captions is editor.captions and (before.shown, before.page) == (editor.shown, editor.page)
    pages = max(1, -(-len(editor.shown) // PAGE))
    first = editor.page * PAGE
    here = editor.shown[first : first + PAGE]
    place = f"{first + 1} to {first + len(here)} of {len(editor.shown)}" if pages > 1 else ""
    unsaved_now = len(editor.captions.unsaved) if editor.captions else 0
    text = (editor.captions.text(editor.clicked) or "") if editor.captions and editor.clicked else ""
    editor = replace(editor, sent=before.sent + 1)
    return [
        editor,
        said,
        gr.update() if same else gr.update(value=_items(editor.captions, here)),
        f'<div class="ti-line ti-subdued">{place}</div>',
        summary(editor),
        large(editor),
        gr.update(value=text),
        gr.update(value=f"Save {counted(unsaved_now, 'change')}" if unsaved_now else "Save"),
        gr.update() if same else ticks(editor, find, ticked),
        str(editor.sent),
        "",
    ]


def _committed(editor: EditorState, text: str, sent: str) -> EditorState:
    """With what was typed for the image clicked: going on to another must not lose it.

    Who presses two buttons at once gives us the caption from before the first: that was not typed.
    """
    captions = editor.captions
    if captions and editor.clicked and sent == str(editor.sent):
        captions = captions.edit(editor.clicked, text or "")
    return replace(editor, captions=captions, warned=False)


def _filtered(editor: EditorState, filters: Sequence[Any], *, stay: bool = False) -> EditorState:
    """With the images that the filters let through; on the same page of them, if that is wished."""
    if editor.captions is None:
        return editor
    all_of, none_of, bare = filters
    shown = editor.captions.having(all_of or (), none_of or (), without_caption=bool(bare))
    page = min(editor.page, max(0, len(shown) - 1) // PAGE) if stay or shown == editor.shown else 0
    return replace(editor, shown=shown, page=page)


def _moved(editor: EditorState, by: int, *, pages: bool) -> EditorState:
    """At the page, or at the image, before or after."""
    if not editor.shown:
        return editor
    last = len(editor.shown) - 1
    if pages:
        return replace(editor, page=min(max(editor.page + by, 0), last // PAGE))
    at = editor.shown.index(editor.clicked) + by if editor.clicked in editor.shown else editor.page * PAGE
    at = min(max(at, 0), last)
    return replace(editor, clicked=editor.shown[at], page=at // PAGE)


def applied(editor: EditorState) -> tuple[EditorState, str]:
    """What was typed is taken over by every handler; this one does no more."""
    return replace(editor, captions=_loaded(editor)), ""


def undone(editor: EditorState) -> tuple[EditorState, str]:
    """Take the last change back."""
    new = _loaded(editor).undo()
    return replace(editor, captions=new), "" if new is not editor.captions else notice("info", "There is nothing to undo.")


def redone(editor: EditorState) -> tuple[EditorState, str]:
    """Make it again."""
    new = _loaded(editor).redo()
    return replace(editor, captions=new), "" if new is not editor.captions else notice("info", "There is nothing to redo.")


def saved(editor: EditorState) -> tuple[EditorState, str]:
    """Write what was changed."""
    captions = _loaded(editor)
    if not captions.unsaved:
        return editor, notice("info", "There is nothing to save: all is on disk as it is here.")
    captions, saved = captions.save()
    said = f"Saved: {counted(saved.written, 'caption')} written" if saved.written else "Saved"
    said += f", {saved.removed} taken away." if saved.removed else "."
    if saved.backup:
        said += f" What was there before is kept in {BACKUP}/{saved.backup.name}."
    return replace(editor, captions=captions), notice("good", said)


def renamed(captions: Captions, chosen: Sequence[Path], ticked: list[str], name: str) -> Captions:
    """The one ticked tag under another name; ConfigError if there is not one."""
    if len(ticked or []) != 1:
        message = f"Rename: found {len(ticked or [])} ticked tags, expected one. Tick the one to be renamed."
        raise ConfigError(message)
    return captions.rename(chosen, ticked[0], name or "")


def replaced(
    page: Page, captions: Captions, chosen: Sequence[Path], _: list[str], search: str, by: str, regex: bool
) -> Captions:
    """Text or a regular expression, where that is allowed, by another text."""
    if regex and page.is_public:
        message = "Regular expressions are not for visitors here: one can keep the program busy for ever."
        raise ConfigError(message)
    return captions.replace(chosen, search or "", by or "", regex=regex)


def looked(editor: EditorState) -> list[Any]:
    """Tags of nearly all images, ticked, and a button that takes them away."""
    try:
        found = _loaded(editor).common()
    except ConfigError as error:
        return [notice("error", str(error)), gr.update(), gr.update()]
    if not found:
        hidden = gr.update(visible=False)
        return [notice("good", "No tag stands in nearly all images (in 9 of 10 or more)."), hidden, hidden]
    choices = [(f"{tag} ({share:.0%})", tag) for tag, share in found]
    return ["", gr.update(choices=choices, value=[tag for tag, _ in found], visible=True), gr.update(visible=True)]


def _loaded(editor: EditorState) -> Captions:
    if editor.captions is None:
        message = "Load a folder first: name it above and press Load."
        raise ConfigError(message)
    return editor.captions


def _meant(editor: EditorState, target: str) -> Sequence[Path]:
    if target != ONE:
        return editor.shown
    if editor.clicked is None:
        message = "Click an image first, or choose to change all that are shown."
        raise ConfigError(message)
    return [editor.clicked]


def entered_tags(tags: str) -> str:
    """The tags that were typed; ConfigError if there are none."""
    if not (tags or "").strip(" ,"):
        message = "New tags: found nothing, expected one or more, separated by commas."
        raise ConfigError(message)
    return tags


def ticked_tags(ticked: list[str]) -> list[str]:
    """Those that were ticked; ConfigError if there are none."""
    if not ticked:
        message = "Tick the tags that you mean first."
        raise ConfigError(message)
    return ticked


def _told(before: Captions, after: Captions) -> str:
    count = difference(before, after)
    if not count:
        return notice("info", "Nothing to change there: these captions are as you want them already.")
    said = (
        f"Changed {counted(count, 'caption')}. Unsaved now: {len(after.unsaved)}; nothing is written until you press Save."
    )
    return notice("good", said)


def ticks(editor: EditorState, find: str, ticked: list[str]) -> Any:
    """The tags of what is shown, with the numbers of their images; those that are ticked stay so while they are there."""
    counts = editor.captions.counts(editor.shown) if editor.captions else []
    part = (find or "").strip().lower()
    there = [each for each in counts if part in each[0].lower() or each[0] in (ticked or [])][:MOST_TAGS]
    still = [tag for tag, _ in there if tag in (ticked or [])]
    return gr.update(choices=[(f"{tag} ({count})", tag) for tag, count in there], value=still)


def _items(captions: Captions, images: Sequence[Path]) -> list[tuple[Image.Image, str]]:
    with ThreadPoolExecutor(4) as pool:
        return list(zip(pool.map(small, images), (_label(captions, each) for each in images), strict=True))


def _label(captions: Captions, image: Path) -> str:
    text = captions.text(image)
    if text is not None:
        return text or "[empty]"
    words = captions.names[image.stem]
    return f"[file name] {words}" if words else "[no caption]"


def large(editor: EditorState) -> str:
    """The image clicked, large, and what it is called."""
    if editor.captions is None or editor.clicked is None:
        return '<div class="ti-large ti-subdued">Click an image to see it here and to write its caption.</div>'
    image = editor.clicked
    words = escape(editor.captions.names[image.stem])
    said = ""
    if editor.captions.text(image) is None:
        said = " · no caption" + (f"; its file name says “{words}”" if words else "")
    address = address_of(small(image, LARGE_PX))
    line = f'<div class="ti-line ti-subdued" title="{escape(str(image))}">{escape(image.name)}{said}</div>'
    return f'<div class="ti-large"><img src="{address}" alt="{escape(image.name)}"></div>{line}'


def summary(editor: EditorState) -> str:
    """How many images there are, and what is not saved yet."""
    if editor.captions is None:
        return '<div class="ti-line ti-subdued">No folder is loaded.</div>'
    captions, count = editor.captions, len(editor.captions.unsaved)
    bare = sum(captions.text(image) is None for image in captions.images)
    parts = [
        f"<b>{counted(count, 'unsaved change')}</b>" if count else "no unsaved changes",
        counted(len(captions.images), "image"),
        f"{len(editor.shown)} shown" if len(editor.shown) < len(captions.images) else "",
        f"{bare} without a caption" if bare else "",
    ]
    return f'<div class="ti-line ti-numbers">{" · ".join(filter(None, parts))}</div>'
