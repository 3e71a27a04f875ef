"""Bridge the differences between gradio 3.41 (the WebUI), 4.40 (Forge) and 6 (standalone)."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import inspect
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import gradio as gr
import gradio.routes
import gradio.utils

from ti_trainer.errors import TITrainerError
from ti_trainer.wording import encodable

log = logging.getLogger(__name__)
MAJOR = int(gr.__version__.partition(".")[0])
LOCAL_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # 3 loads Google's
FEW_OUTPUTS = 4  # of a handler: all are made
LOOK_S = 0.05
MAX_SESSIONS = 200  # kept in memory; each may hold the captions of a dataset

C = TypeVar("C", bound=gr.blocks.Block)


def theme() -> gr.themes.Base:
    """The WebUI's own theme, with the system's fonts."""
    return gr.themes.Default(**LOCAL_FONTS)


def blocks(title: str) -> gr.Blocks:
    """The root block. A host that renders it inside its own page uses its own theme."""
    if MAJOR < 6:
        return gr.Blocks(title=title, analytics_enabled=False, theme=theme())
    return gr.Blocks(title=title, analytics_enabled=False)  # 6 takes the theme when the page is mounted


def light_sessions(root: gr.Blocks) -> None:
    """Keep gradio 6 from copying every component's configuration for each session.

    It does so for deep links, which are not served; each copy takes 1.2 MB and 70 ms of CPU.
    """
    if MAJOR < 6:
        return

    class LightConfig(gr.blocks.BlocksConfig):
        def __copy__(self) -> LightConfig:
            copied = super().__copy__()
            copied.config_for_block = lambda *_: {}
            return copied

    root.default_config.__class__ = LightConfig
    root.state_session_capacity = MAX_SESSIONS


def light_updates(root: gr.Blocks) -> None:
    """Keep gradio 6 from making every output of a handler anew, also those that it does not update.

    A poll has 50 outputs, of which few change; without this it takes 15 ms more of CPU.
    """
    if MAJOR < 6:
        return
    complete, unchanged = root.postprocess_data, gr.update()

    async def changed_only(block_fn: Any, predictions: Any, state: Any) -> Any:
        count = len(block_fn.outputs)
        if not isinstance(predictions, list | tuple) or count < FEW_OUTPUTS or len(predictions) != count:
            return await complete(block_fn, predictions, state)
        changed = [number for number, each in enumerate(predictions) if each != unchanged]
        output: list[Any] = [dict(unchanged) for _ in predictions]
        if changed:
            fewer = copy.copy(block_fn)
            fewer.outputs = [block_fn.outputs[number] for number in changed]
            values = [predictions[number] for number in changed]
            found = await complete(fewer, values if len(values) > 1 else values[0], state)
            for number, each in zip(changed, found, strict=True):
                output[number] = each
        return output

    root.postprocess_data = changed_only


def light_queue(root: gr.Blocks) -> None:
    """Have gradio 6 look for queued events 20 times a second: it does so 1000 times, which takes 5% of a CPU on its own."""
    if MAJOR >= 6:
        root._queue.sleep_when_free = LOOK_S


def light_calls() -> None:
    """Keep gradio 6 from looking for matplotlib before and after each call where there is none: a sixth of a poll's CPU."""
    if MAJOR >= 6 and importlib.util.find_spec("matplotlib") is None:
        gradio.utils.MatplotlibBackendMananger = contextlib.nullcontext


def listen(
    event: Callable[..., Any],
    fn: Callable[..., Any] | None,
    inputs: Sequence[gr.blocks.Block] | set[gr.blocks.Block] = (),
    outputs: Sequence[gr.blocks.Block] = (),
    *,
    js: str | None = None,
    api_name: str | None = None,
    queue: bool = False,
    show_progress: str = "hidden",
) -> Any:
    """Wire `button.click`, `textbox.input`, `earlier.then`, ... without an overlay, and without an endpoint unless named.

    If `inputs` is a set, the handler gets one dict of component to value; it may return a dict of component to update.
    Only slow handlers go through gradio's queue: its answers come as a stream of events, and a click at the very end of
    the stream may be lost.
    """
    options: dict[str, Any] = {"_js" if MAJOR < 4 else "js": js}
    if MAJOR < 6:
        options["api_name"] = api_name or False
    else:  # 6 would treat False as a name
        options |= {"api_name": api_name, "api_visibility": "public" if api_name else "private"}
    if fn is not None:
        fn = _sending(fn, outputs) if inspect.isgeneratorfunction(fn) else _refusing(fn, outputs)
    given = inputs if isinstance(inputs, set) else list(inputs)
    return event(fn, given, list(outputs), queue=queue, show_progress=show_progress, **options)


class Refusal(gr.Error):
    """An error that the user can fix: the page shows the message, and the console gets no traceback."""

    def __init__(self, message: str) -> None:
        """Take the message as it will be shown."""
        super().__init__(message)
        self.print_exception = False  # ignored by gradio 3

    def __str__(self) -> str:
        """The message without the quotes that gradio 3 adds."""
        return self.message


def refuse_missing_values(root: gr.Blocks) -> None:
    """Report a call with too few values as the caller's mistake, without a traceback."""
    validate = root.validate_inputs

    def validate_or_refuse(*args: Any) -> None:
        try:
            validate(*args)
        except ValueError as error:
            message = str(error).strip().splitlines()[0]
            log.warning("Refused: %s", message)
            raise Refusal(message) from None

    root.validate_inputs = validate_or_refuse


def sendable(result: Any, outputs: Sequence[gr.blocks.Block]) -> Any:
    """What a handler returned, with `encodable` texts: gradio answers nothing at all if one of them is not. States stay."""
    if isinstance(result, dict) and any(isinstance(key, gr.blocks.Block) for key in result):
        return {key: value if isinstance(key, gr.State) else _encodable(value) for key, value in result.items()}
    if len(outputs) == 1 or not isinstance(result, list | tuple):
        return result if outputs and isinstance(outputs[0], gr.State) else _encodable(result)
    return [
        value if isinstance(output, gr.State) else _encodable(value) for value, output in zip(result, outputs, strict=True)
    ]


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else encodable(value)
    if isinstance(value, dict):
        return {key: _encodable(each) for key, each in value.items()}
    return type(value)(map(_encodable, value)) if type(value) in (list, tuple) else value


def _sending(fn: Callable[..., Any], outputs: Sequence[gr.blocks.Block]) -> Callable[..., Any]:
    """The same generator, with results that can be sent."""

    def handler(*args: Any) -> Iterator[Any]:
        for result in fn(*args):
            yield sendable(result, outputs)

    return handler


def _refusing(fn: Callable[..., Any], outputs: Sequence[gr.blocks.Block]) -> Callable[..., Any]:
    """Turn our errors into gradio's, the only ones whose message the page shows; the console gets one line."""

    @functools.wraps(fn)
    def handler(*args: Any) -> Any:
        try:
            return sendable(fn(*args), outputs)
        except (TITrainerError, OSError) as error:
            log.warning("Refused: %s", " ".join(str(error).split()))
            raise Refusal(encodable(str(error))) from None

    if not hasattr(fn, "__annotations__"):  # gradio would resolve the annotations in the globals of, say, a partial
        handler.__annotations__ = {}
    return handler


def _skip_traceback_of_refusals() -> None:
    """Keep gradio 3, which prints a traceback of whatever a handler raises, from printing that of a Refusal."""

    def print_exc(*args: Any, **options: Any) -> None:
        if not isinstance(sys.exc_info()[1], Refusal):
            traceback.print_exc(*args, **options)

    gradio.routes.traceback = SimpleNamespace(**{**vars(traceback), "print_exc": print_exc})


if "print_exception" not in inspect.signature(gr.Error).parameters:
    _skip_traceback_of_refusals()


def unsaved(component: C) -> C:
    """Keep a component out of the WebUI's ui-config.json, which would restore an old value at the next start."""
    component.do_not_save_to_config = True
    return component
