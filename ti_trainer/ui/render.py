"""Render what the page shows as HTML: pure functions of values, with all text escaped. Independent of Gradio and files."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from typing import Literal

from ti_trainer.errors import BusyError, explained
from ti_trainer.wording import encodable

Kind = Literal["error", "warning", "good", "info"]
Token = tuple[int, str | None]

STATUS_LABELS = {
    "idle": "Nothing is running",
    "waiting": "Waiting for the model",
    "loading": "Loading",
    "training": "Training",
    "working": "Preprocessing",
    "comparing": "Comparing",
    "pausing": "Pausing",
    "paused": "Paused",
    "stopping": "Stopping",
    "stopped": "Stopped",
    "done": "Done",
    "failed": "Failed",
}
MARKS: dict[Kind, str] = {"error": "✕", "warning": "!", "good": "✓", "info": "i"}
MINUTE, HOUR = 60, 3600
FAST, SLOW = 10.0, 0.5  # steps/s: without decimals above FAST; as s/it below SLOW
STOP = {"Stop it": "press:ti_trainer_stop"}  # a way out, for `ways_out`
VERBATIM = 'translate="no"'  # names and what users typed: javascript/ti_trainer_language.js leaves them as they are
NUMBERS = ("epoch", "loss", "time left")  # labels that `numbers` is given
_refusal_ids = itertools.count(1)


def duration(seconds: float | None) -> str:
    """Format as '45 s', '3 min' or '1 h 20 min'; an empty string if unknown."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    whole = max(0, round(seconds))
    if whole < MINUTE:
        return f"{whole} s"
    minutes = round(whole / MINUTE)
    if whole < HOUR and minutes < MINUTE:
        return f"{minutes} min"
    hours, rest = divmod(minutes, MINUTE)
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def speed(steps_per_second: float | None) -> str:
    """Format as '3.1 it/s', or as '4.2 s/it' if a step takes longer than two seconds."""
    if not steps_per_second or not math.isfinite(steps_per_second):
        return ""
    if steps_per_second < SLOW:
        return f"{1 / steps_per_second:.1f} s/it"
    return f"{steps_per_second:.0f} it/s" if steps_per_second >= FAST else f"{steps_per_second:.1f} it/s"


def progress(
    status: str,
    name: str = "",
    step: int = 0,
    max_steps: int = 0,
    epoch: int | None = None,
    steps_per_second: float | None = None,
    seconds_left: float | None = None,
    message: str = "",
) -> str:
    """Render a progress bar with the job's name and status above and its numbers below; its height is constant.

    javascript/ti_trainer.js reads `data-status`.
    """
    percent = 100 * min(1.0, max(0.0, step / max_steps)) if max_steps else 0.0
    line = numbers(
        ("", f"{step} / {max_steps}" if max_steps else ""),
        ("epoch", "" if epoch is None else str(epoch)),
        ("", speed(steps_per_second)),
        ("time left", duration(seconds_left)),
    )
    return (
        f'<div class="ti-progress" data-status="{escape(status)}">'
        f'<div class="ti-line"><b {VERBATIM}>{escape(name)}</b> <span class="ti-status">{STATUS_LABELS[status]}</span></div>'
        f"{progress_bar(percent)}"
        f'<div class="ti-line ti-numbers">{line or "&nbsp;"}</div>'
        f'<div class="ti-line ti-subdued" title="{escape(message)}">{escape(message) or "&nbsp;"}</div></div>'
    )


def numbers(*items: tuple[str, str]) -> str:
    """Render labels with their values in one line; without those whose value is empty."""
    return " · ".join(f"<span>{label}</span> {value}" if label else value for label, value in items if value)


def progress_bar(percent: float) -> str:
    """Render the bar alone; `percent` is from 0 to 100."""
    return (
        f'<div class="ti-bar" role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent:.0f}">'
        f'<div style="width:{percent:.2f}%"></div></div>'
    )


def notice(kind: Kind, text: str, more: str = "") -> str:
    """Render a message in a box, with its line breaks; an empty string for an empty text.

    `more` are sentences after it, in an element of their own so that the text alone is translated.
    """
    if not text:
        return ""
    text, more = escape(encodable(text)), escape(encodable(more))
    text = f"<span>{text}</span> <span>{more}</span>" if more else text
    role = "alert" if kind == "error" else "status"
    mark = f'<b aria-hidden="true">{MARKS[kind]}</b>'
    return f'<div class="ti-notice ti-{kind}" role="{role}">{mark}<div>{text}</div></div>'


def refusal(error: Exception, ways: Mapping[str, str] | None = None) -> str:
    """Render an error in a box, with ways out below: see `ways_out`. One way out of a BusyError is to stop what is running.

    javascript/ti_trainer_updates.js hides those of a BusyError once the run is over.
    """
    box = notice("error", explained(error))
    if not isinstance(error, BusyError):
        return box + ways_out(ways or {})
    # The number makes a repeated message a new element for the script.
    return f'<div data-busy="{next(_refusal_ids)}">{box}{ways_out({**(ways or {}), **STOP})}</div>'


def ways_out(ways: Mapping[str, str]) -> str:
    """Render buttons below a refusal, by label.

    Each shows a tab ("show:TAB"), presses another button ("press:ELEM_ID"), or puts a text into a hidden text box
    ("ask:ELEM_ID TEXT"): javascript/ti_trainer_strip.js acts on them.
    """
    buttons = []
    for label, way in ways.items():
        what, _, where = way.partition(":")
        where, _, text = where.partition(" ") if what == "ask" else (where, "", "")
        value = f' data-ti-value="{escape(text)}"' if text else ""
        buttons.append(
            f'<button type="button" class="ti-way" data-ti-{what}="{escape(where)}"{value}>{escape(label)}</button>'
        )
    return f'<div class="ti-ways">{"".join(buttons)}</div>' if buttons else ""


def field_error(message: str | None) -> str:
    """Render what is wrong with one field, to be shown below it."""
    return f'<div class="ti-field-error" role="alert">{escape(message)}</div>' if message else ""


def facts(rows: Iterable[tuple[str, object]], *, ours: Collection[object] = (), names: bool = False) -> str:
    """Render a small table of labels and values.

    `ours` are those values that are a text of the page, to be translated; `names`: so are the labels not.
    """
    label = f"<dt {VERBATIM}>" if names else "<dt>"
    cells = "".join(
        f"{label}{escape(name)}</dt><dd{'' if value in ours else ' ' + VERBATIM}>{escape(str(value))}</dd>"
        for name, value in rows
    )
    return encodable(f'<dl class="ti-facts">{cells}</dl>') if cells else ""


def images(items: Sequence[tuple[str, str]], *, wide: bool = False) -> str:
    """Render images side by side with their captions below; `items` are (caption, URL), and data: URIs are allowed.

    Wide images are as wide as the column, below each other.
    """
    figures = "".join(
        f'<figure><img src="{escape(url)}" alt="{escape(caption)}">'
        f'<figcaption title="{escape(caption)}" {VERBATIM}>{escape(caption)}</figcaption></figure>'
        for caption, url in items
    )
    return f'<div class="ti-images{" ti-wide" if wide else ""}">{figures}</div>' if figures else ""


def prompt_table(rows: Iterable[tuple[str, Sequence[Sequence[Token]]]]) -> str:
    """Render tokenized prompts: each with its chunks, each chunk a list of (id, text); None marks an embedding's vector."""
    border = '<hr title="A new chunk of 75 tokens starts here">'
    body = "".join(
        f"<div class='ti-prompt'>{escape(prompt)}</div><div class='ti-tokens'>{border.join(map(_chunk, chunks))}</div>"
        for prompt, chunks in rows
    )
    return f'<div class="ti-prompts" {VERBATIM}>{body}</div>' if body else ""


def _chunk(tokens: Sequence[Token]) -> str:
    return "".join(
        f"<span class='ti-token'>{escape(text) or '&nbsp;'}<small>{number}</small></span>"
        if text is not None
        else f"<span class='ti-token ti-embedding' title='A vector of the embedding'>●<small>{number}</small></span>"
        for number, text in tokens
    )
