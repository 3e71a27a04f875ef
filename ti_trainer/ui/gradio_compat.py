"""The few differences between gradio 3.41 (the WebUI), 4.40 (Forge) and 6 (standalone). Knows nothing of our panels."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import gradio as gr
import gradio.routes

from ti_trainer.errors import TITrainerError

log = logging.getLogger(__name__)
MAJOR = int(gr.__version__.partition(".")[0])
LOCAL_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # 3 would ask Google
MOST_SESSIONS = 200  # that are remembered, the last ones; each may hold the captions of a dataset

C = TypeVar("C", bound=gr.blocks.Block)


def theme() -> gr.themes.Base:
    """The WebUI's own theme, with fonts that are there already."""
    return gr.themes.Default(**LOCAL_FONTS)


def blocks(title: str) -> gr.Blocks:
    """What panels are put into. A host that renders it inside its own page brings its own theme."""
    if MAJOR < 6:
        return gr.Blocks(title=title, analytics_enabled=False, theme=theme())
    return gr.Blocks(title=title, analytics_enabled=False)  # 6 takes the theme where the page is served


def light_sessions(made: gr.Blocks) -> None:
    """Spare 6 a copy of the configuration of every component for each session, also for that of a single call.

    It keeps them for its deep links, which are not served: 1.2 MB and 70 ms of CPU each.
    """
    if MAJOR < 6:
        return

    class Light(type(made.default_config)):
        def __copy__(self) -> Light:
            copied = super().__copy__()
            copied.config_for_block = lambda *_: {}
            return copied

    made.default_config.__class__ = Light
    made.state_session_capacity = MOST_SESSIONS


def listen(
    event: Callable[..., Any],
    fn: Callable[..., Any] | None,
    inputs: Sequence[gr.blocks.Block] = (),
    outputs: Sequence[gr.blocks.Block] = (),
    *,
    js: str | None = None,
    api_name: str | None = None,
    queue: bool = False,
    show_progress: str = "hidden",
) -> Any:
    """Wire `button.click`, `textbox.input`, `earlier.then`, ...: no overlay, and no endpoint unless it is named.

    Only what takes long goes through gradio's queue: its answers come by a stream of events, and a press just as the
    last of them ends may go unanswered.
    """
    options: dict[str, Any] = {"_js" if MAJOR < 4 else "js": js}
    if MAJOR < 6:
        options["api_name"] = api_name or False
    else:  # 6 takes False for a name
        options |= {"api_name": api_name, "api_visibility": "public" if api_name else "private"}
    fn = fn if fn is None or inspect.isgeneratorfunction(fn) else _refusing(fn)
    return event(fn, list(inputs), list(outputs), queue=queue, show_progress=show_progress, **options)


class Refusal(gr.Error):
    """Something that the user can mend: the page shows the message, and the console no traceback."""

    def __init__(self, message: str) -> None:
        """The message is shown as it is."""
        super().__init__(message)
        self.print_exception = False  # which gradio 3 does not know

    def __str__(self) -> str:
        """Without the quotes that gradio 3 puts around it."""
        return self.message


def refuse_missing_values(made: gr.Blocks) -> None:
    """A call with fewer values than an endpoint takes is the caller's mistake, and no traceback of ours."""
    check = made.validate_inputs

    def checked(*given: Any) -> None:
        try:
            check(*given)
        except ValueError as error:
            said = str(error).strip().splitlines()[0]
            log.warning("Refused: %s", said)
            raise Refusal(said) from None

    made.validate_inputs = checked


def _refusing(fn: Callable[..., Any]) -> Callable[..., Any]:
    """What the user can mend, gradio shows, since it shows the words of its own errors only; the console has a line."""

    @functools.wraps(fn)
    def handler(*given: Any) -> Any:
        try:
            return fn(*given)
        except (TITrainerError, OSError) as error:
            log.warning("Refused: %s", " ".join(str(error).split()))
            raise Refusal(str(error)) from None

    if not hasattr(fn, "__annotations__"):  # gradio would look for what ours mean in the globals of, say, a partial
        handler.__annotations__ = {}
    return handler


def _print_no_refusals() -> None:
    """Gradio 3 prints a traceback of everything that a handler raises: of everything else it still does."""

    def print_exc(*given: Any, **options: Any) -> None:
        if not isinstance(sys.exc_info()[1], Refusal):
            traceback.print_exc(*given, **options)

    gradio.routes.traceback = SimpleNamespace(**{**vars(traceback), "print_exc": print_exc})


if "print_exception" not in inspect.signature(gr.Error).parameters:
    _print_no_refusals()


def unsaved(component: C) -> C:
    """Keep a component out of the WebUI's ui-config.json, which would bring an old value back at the next start."""
    component.do_not_save_to_config = True
    return component
