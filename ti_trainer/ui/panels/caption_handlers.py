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

PAGE = 60  # pictures at once
MOST_TAGS = 100  # to tick; rarer ones are found by typing
LARGE_PX = 448
VIEW = 11  # components that show captions
ALL, ONE = "all that are shown", "the picture I clicked"


@dataclass(frozen=True, eq=False)
class Desk:
    """What one visitor works on. `warned`: that loading would lose changes; `sent`: how often a caption went to its box."""

    captions: Captions | None = None
    shown: tuple[Path, ...] = ()
    page: int = 0
    clicked: Path | None = None
    warned: bool = False
    sent: int = 0


def acted(change: Callable[..., Captions], *given: Any) -> list[Any]:
    """Change the captions of many pictures."""
    *base, target = given[:9]

    def many_changed(desk: Desk) -> tuple[Desk, str]:
        captions = _loaded(desk)
        new = change(captions, _meant(desk, target), base[4], *given[9:])
        return replace(desk, captions=new), _told(captions, new)

    updates = changed(many_changed, *base)
    updates[1], updates[VIEW - 1] = "", updates[1]  # said beside the buttons for many captions, not at the top
    return updates


def clicked(desk: Desk, text: str, sent: str, find: str, ticked: list[str], event: gr.SelectData) -> list[Any]:
    """Take the picture that was clicked to hand."""
    number = desk.page * PAGE + event.index
    picture = desk.shown[number] if number < len(desk.shown) else None
    return _seen(replace(_committed(desk, text, sent), clicked=picture), desk, find, ticked)


def went(by: int, pages: bool, desk: Desk, text: str, sent: str, find: str, ticked: list[str]) -> list[Any]:
    """To the next or previous picture, or page of pictures."""
    return _seen(_moved(_committed(desk, text, sent), by, pages=pages), desk, find, ticked)


def sifted(desk: Desk, text: str, sent: str, find: str, ticked: list[str], *filters: Any) -> list[Any]:
    """Show those that the filters let through."""
    new = _filtered(_committed(desk, text, sent), filters)
    if (new.captions, new.shown) == (desk.captions, desk.shown):  # gradio 6 calls it a change when choices are replaced, too
        return [gr.update() for _ in range(VIEW)]
    return _seen(new, desk, find, ticked)


def opened(page: Page, *given: Any) -> list[Any]:
    """Load the folder; changes that are not saved yet are lost only if Load is pressed twice."""
    *base, folder = given
    warned = base[0].warned

    def loaded(desk: Desk) -> tuple[Desk, str]:
        left = len(desk.captions.unsaved) if desk.captions else 0
        if left and not warned:
            said = f"{counted(left, 'caption')} changed and not saved: Save first, or press Load once more to give that up."
            return replace(desk, warned=True), notice("warning", said)
        path = page.data_set_dir(folder)
        words = {each: page.host.defaults.get(f"filename_{each}") for each in ("word_regex", "join_string")}
        captions = load(path, **{name: value for name, value in words.items() if value is not None})
        return Desk(captions), ""

    return changed(loaded, *base)


def changed(
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
        summary(desk),
        large(desk),
        gr.update(value=text),
        gr.update(value=f"Save {counted(unsaved_now, 'change')}" if unsaved_now else "Save"),
        gr.update() if same else ticks(desk, find, ticked),
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


def applied(desk: Desk) -> tuple[Desk, str]:
    """What was typed is taken over by every handler; this one does no more."""
    return replace(desk, captions=_loaded(desk)), ""


def undone(desk: Desk) -> tuple[Desk, str]:
    """Take the last change back."""
    new = _loaded(desk).undo()
    return replace(desk, captions=new), "" if new is not desk.captions else notice("info", "There is nothing to undo.")


def redone(desk: Desk) -> tuple[Desk, str]:
    """Make it again."""
    new = _loaded(desk).redo()
    return replace(desk, captions=new), "" if new is not desk.captions else notice("info", "There is nothing to redo.")


def saved(desk: Desk) -> tuple[Desk, str]:
    """Write what was changed."""
    captions = _loaded(desk)
    if not captions.unsaved:
        return desk, notice("info", "There is nothing to save: all is on disk as it is here.")
    captions, saved = captions.save()
    said = f"Saved: {counted(saved.written, 'caption')} written" if saved.written else "Saved"
    said += f", {saved.removed} taken away." if saved.removed else "."
    if saved.backup:
        said += f" What was there before is kept in {BACKUP}/{saved.backup.name}."
    return replace(desk, captions=captions), notice("good", said)


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
    if regex and page.has_visitors:
        message = "Regular expressions are not for visitors here: one can keep the program busy for ever."
        raise ConfigError(message)
    return captions.replace(chosen, search or "", by or "", regex=regex)


def looked(desk: Desk) -> list[Any]:
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


def ticks(desk: Desk, find: str, ticked: list[str]) -> Any:
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
    if text is not None:
        return text or "[empty]"
    words = captions.names[picture.stem]
    return f"[file name] {words}" if words else "[no caption]"


def large(desk: Desk) -> str:
    """The picture clicked, large, and what it is called."""
    if desk.captions is None or desk.clicked is None:
        return '<div class="ti-large ti-subdued">Click a picture to see it here and to write its caption.</div>'
    picture = desk.clicked
    words = escape(desk.captions.names[picture.stem])
    said = ""
    if desk.captions.text(picture) is None:
        said = " · no caption" + (f"; its file name says “{words}”" if words else "")
    address = address_of(small(picture, LARGE_PX))
    line = f'<div class="ti-line ti-subdued" title="{escape(str(picture))}">{escape(picture.name)}{said}</div>'
    return f'<div class="ti-large"><img src="{address}" alt="{escape(picture.name)}"></div>{line}'


def summary(desk: Desk) -> str:
    """How many pictures there are, and what is not saved yet."""
    if desk.captions is None:
        return '<div class="ti-line ti-subdued">No folder is loaded.</div>'
    captions, count = desk.captions, len(desk.captions.unsaved)
    bare = sum(captions.text(picture) is None for picture in captions.pictures)
    parts = [
        f"<b>{counted(count, 'unsaved change')}</b>" if count else "no unsaved changes",
        counted(len(captions.pictures), "picture"),
        f"{len(desk.shown)} shown" if len(desk.shown) < len(captions.pictures) else "",
        f"{bare} without a caption" if bare else "",
    ]
    return f'<div class="ti-line ti-numbers">{" · ".join(filter(None, parts))}</div>'
