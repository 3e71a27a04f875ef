"""What the Library shows: cards with previews and facts, and the facts about the one that is chosen."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from ti_trainer.embedding import described_family
from ti_trainer.runs.plots import PREVIEWS
from ti_trainer.runs.run_folder import Run
from ti_trainer.ui.render import VERBATIM, facts
from ti_trainer.ui.thumbnails import thumbnail_uri
from ti_trainer.wording import counted, encodable
from ti_trainer.workbench.library import Entry, Library

MOST_RUNS = 200  # that are searched for a preview
# A click chooses a card in the browser, and puts its place into a hidden text box.
ON_CLICK = """
    const card = event.target.closest(".ti-card");
    if (!card) return;
    for (const each of this.querySelectorAll(".ti-card")) {
        each.setAttribute("aria-pressed", each === card);
    }
    const box = this.closest(".ti-trainer").querySelector(
        "#ti_trainer_library_chosen textarea, #ti_trainer_library_chosen input");
    box.value = card.dataset.place;
    box.dispatchEvent(new Event("input", { bubbles: true }));
    if (window.innerWidth < 1100) {
        this.closest(".ti-trainer").querySelector("#ti_trainer_library_side").scrollIntoView({ behavior: "smooth" });
    }
"""


def cards(library: Library, entries: Sequence[Entry], widths: Mapping[str, int] | None, chosen: str, log_dir: Path) -> str:
    """The entries as cards; those that a model of these widths cannot use are marked."""
    images = previews(entries, log_dir)
    shown = "".join(
        _card(each, library.place_of(each.path), widths, images.get(each.path), library.place_of(each.path) == chosen)
        for each in entries
    )
    return f'<div class="ti-cards ti-library" onclick="{escape(ON_CLICK)}">{encodable(shown)}</div>' if shown else ""


def _card(entry: Entry, place: str, widths: Mapping[str, int] | None, image: Path | None, is_chosen: bool) -> str:
    uri = thumbnail_uri(image) if image is not None else ""
    picture = f'<img src="{uri}" alt="">' if uri else f'<i aria-hidden="true">{escape(entry.name[:1].upper())}</i>'
    reason = entry.unusable(widths)
    mark = f'<em title="{escape(reason)}">{escape(reason)}</em>' if reason else ""
    return (
        f'<button type="button" class="ti-card ti-entry{" ti-unusable" * bool(reason)}" data-place="{escape(place)}" '
        f'aria-pressed="{str(is_chosen).lower()}" title="{escape(place)}"><span class="ti-shot">{picture}</span>'
        f"<b {VERBATIM}>{escape(entry.name)}</b><span>{escape(' · '.join(_facts(entry)))}</span>{mark}</button>"
    )


def _facts(entry: Entry) -> list[str]:
    known = entry.outline
    step = [f"{known.step} steps"] if known and known.step else []
    what = [known.family, counted(known.num_vectors, "vector"), *step] if known else []
    return [*what, time.strftime("%Y-%m-%d", time.localtime(entry.changed_ns / 1e9))]


def previews(entries: Sequence[Entry], log_dir: Path) -> dict[Path, Path]:
    """The image of each entry that has one: beside it, the card itself, or else the last preview of its run."""
    found: dict[Path, Path] = {}
    without: dict[str, list[Path]] = {}
    for entry in entries:
        beside = (entry.path.with_name(entry.path.stem + ending) for ending in PREVIEWS)
        image = next((each for each in beside if each.is_file()), None)
        if image is not None:
            found[entry.path] = image
        elif entry.outline is not None and entry.outline.step:
            without.setdefault(entry.name, []).append(entry.path)
    for run in Run.all(log_dir)[:MOST_RUNS] if without else ():
        name = str(run.settings().get("name"))
        if name in without and (made := run.previews()):
            found |= dict.fromkeys(without.pop(name), made[-1][1])
        if not without:
            break
    return found


def about(entry: Entry, place: str, widths: Mapping[str, int] | None) -> str:
    """The facts about the chosen entry."""
    known, reason = entry.outline, entry.unusable(widths)
    rows: list[tuple[str, object]] = [("File", place)]
    if known is not None:
        rows += [
            ("Family", described_family(known.family, known.widths)),
            ("Vectors", known.num_vectors),
            ("Step", known.step or "unknown"),
            ("Base checkpoint", known.checkpoint or "unknown"),
        ]
    rows.append(("Changed", time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.changed_ns / 1e9))))
    return encodable(facts([*rows, *([("Not usable", reason)] if reason else [])]))
