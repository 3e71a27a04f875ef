"""What Forge's modules/gradio_extensions.py does to gradio 4: its own classes, dropped arguments, wrapped events."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import gradio as gr


def apply() -> None:
    """Change gradio in this process, before a page is built."""
    for base in (gr.components.Component, gr.blocks.BlockContext):
        base.__init__ = _with_class(base.__init__)
    for name in {*gr.components.__all__, *gr.layouts.__all__}:
        component = getattr(gr, name, None)
        if getattr(component, "EVENTS", None):
            component.__init__ = _lenient(component.__init__)
            component.update = gr.update
    gr.Box = gr.Group


def _with_class(create: Callable[..., None]) -> Callable[..., None]:
    def init(self: Any, *args: Any, **options: Any) -> None:
        create(self, *args, **options)
        self.elem_classes = [f"gradio-{self.get_block_name()}", *(self.elem_classes or [])]

    return init


def _lenient(create: Callable[..., None]) -> Callable[..., None]:
    known = inspect.signature(create).parameters

    @functools.wraps(create)
    def init(self: Any, *args: Any, **options: Any) -> None:
        create(self, *args, **{name: value for name, value in options.items() if name in known})
        for event in map(str, self.EVENTS):
            setattr(self, event, _Event(getattr(self, event)))

    return init


class _Event:
    """An event that also takes `_js`, and is no function of gradio's any more."""

    def __init__(self, event: Callable[..., Any]) -> None:
        self.event = event

    def __call__(self, *args: Any, **options: Any) -> Any:
        if "_js" in options:
            options["js"] = options.pop("_js")
        return self.event(*args, **options)
