"""What the page shows, as HTML: pure functions of values. All text is escaped. Knows no Gradio and no files."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Literal

from ti_trainer.errors import BusyError

Kind = Literal["error", "warning", "good", "info"]
Token = tuple[int, str | None]

SAYS = {
    "idle": "Nothing is running",
    "waiting": "Waiting for the model",
    "loading": "Loading",
    "training": "Training",
    "working": "Preprocessing",
    "pausing": "Pausing",
    "paused": "Paused",
    "stopping": "Stopping",
    "stopped": "Stopped",
    "done": "Done",
    "failed": "Failed",
}
MARKS: dict[Kind, str] = {"error": "✕", "warning": "!", "good": "✓", "info": "i"}
MINUTE, HOUR = 60, 3600
_numbers = itertools.count(1)
QUICK, SLOW = 10.0, 0.5  # its/s from which decimals, and below which its/s themselves, say little


def duration(seconds: float | None) -> str:
    """'45 s', '3 min', '1 h 20 min'; nothing where it is not known."""
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
    """'3.1 it/s', and '4.2 s/it' where a step takes long."""
    if not steps_per_second or not math.isfinite(steps_per_second):
        return ""
    if steps_per_second < SLOW:
        return f"{1 / steps_per_second:.1f} s/it"
    return f"{steps_per_second:.0f} it/s" if steps_per_second >= QUICK else f"{steps_per_second:.1f} it/s"


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
    """A bar, the job's name and state above, its numbers below; as high whatever it says. The script reads its status."""
    percent = 100 * min(1.0, max(0.0, step / max_steps)) if max_steps else 0.0
    left = duration(seconds_left)
    numbers = [
        f"{step} / {max_steps}" if max_steps else "",
        "" if epoch is None else f"epoch {epoch}",
        speed(steps_per_second),
        f"{left} left" if left else "",
    ]
    return (
        f'<div class="ti-progress" data-status="{escape(status)}">'
        f'<div class="ti-line"><b>{escape(name)}</b> <span class="ti-status">{SAYS[status]}</span></div>'
        f'<div class="ti-bar" role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent:.0f}">'
        f'<div style="width:{percent:.2f}%"></div></div>'
        f'<div class="ti-line ti-numbers">{" · ".join(filter(None, numbers)) or "&nbsp;"}</div>'
        f'<div class="ti-line ti-subdued" title="{escape(message)}">{escape(message) or "&nbsp;"}</div></div>'
    )


def notice(kind: Kind, text: str) -> str:
    """A message in a box; line breaks are kept. Nothing for no text."""
    if not text:
        return ""
    role = "alert" if kind == "error" else "status"
    mark = f'<b aria-hidden="true">{MARKS[kind]}</b>'
    return f'<div class="ti-notice ti-{kind}" role="{role}">{mark}<div>{escape(text)}</div></div>'


def refusal(error: Exception) -> str:
    """What cannot be done, in a box. The script takes those away that a training was the reason for, when it is over."""
    box = notice("error", str(error))
    # Numbered, so that the same words, said once more, are another box.
    return box.replace("<div ", f'<div data-busy="{next(_numbers)}" ', 1) if isinstance(error, BusyError) else box


def field_error(message: str | None) -> str:
    """What is wrong with one entry, to stand below it."""
    return f'<div class="ti-field-error" role="alert">{escape(message)}</div>' if message else ""


def facts(rows: Iterable[tuple[str, object]]) -> str:
    """A small table of names and values."""
    cells = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in rows)
    return f'<dl class="ti-facts">{cells}</dl>' if cells else ""


def images(items: Sequence[tuple[str, str]]) -> str:
    """Images side by side with their captions below; `items` are (caption, address), an address may be a data: URI."""
    figures = "".join(
        f'<figure><img src="{escape(address)}" alt="{escape(caption)}">'
        f'<figcaption title="{escape(caption)}">{escape(caption)}</figcaption></figure>'
        for caption, address in items
    )
    return f'<div class="ti-images">{figures}</div>' if figures else ""


def prompt_table(rows: Iterable[tuple[str, Sequence[Sequence[Token]]]]) -> str:
    """Prompts as they are fed: each with its chunks, each chunk with (id, text); no text marks a place of the embedding."""
    border = '<hr title="a new chunk begins">'
    body = "".join(
        f"<div class='ti-prompt'>{escape(prompt)}</div><div class='ti-tokens'>{border.join(map(_chunk, chunks))}</div>"
        for prompt, chunks in rows
    )
    return f'<div class="ti-prompts">{body}</div>' if body else ""


def _chunk(tokens: Sequence[Token]) -> str:
    return "".join(
        f"<span class='ti-token'>{escape(text) or '&nbsp;'}<small>{number}</small></span>"
        if text is not None
        else f"<span class='ti-token ti-embedding' title='a vector of the embedding'>●<small>{number}</small></span>"
        for number, text in tokens
    )
