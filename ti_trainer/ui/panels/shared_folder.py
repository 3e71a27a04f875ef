"""One dataset folder for all panels: what is entered in one is filled in the others, unless users typed another there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ti_trainer.errors import TITrainerError
from ti_trainer.files import entered_path
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels.quick_train import QuickTrain, about_folder

Values = Mapping[Any, Any]  # of components, as gradio passes them


@dataclass
class SharedFolder:
    """The fields for the folder, and a hidden text box with the folder that was filled in last.

    Quick train sends its folder, but takes one only while it has no images.
    """

    page: Page
    source: Any  # of preprocessing, whose results go elsewhere
    fields: Sequence[Any]
    quick: QuickTrain
    last: Any = None

    def wire(self) -> None:
        """Add the text box, and share what users enter."""
        with gr.Row(elem_classes=["ti-hidden"]):
            start = self.page.prefilled
            value = str(start.images) if start else ""
            self.last = unsaved(gr.Textbox(value=value, elem_id="ti_trainer_shared_folder"))
        for field in (*self.fields, self.source, self.quick.folder):
            for event in (field.blur, field.submit):
                self.share_at(event, field)

    def share_at(self, event: Callable[..., Any], field: Any) -> None:
        """Share what a field has at an event."""
        listen(event, lambda values: self.shared(values, values[field]), self.given, self.outputs)

    def share_destination_at(self, event: Callable[..., Any], field: Any) -> None:
        """Share the folder in `field` that a preprocessing which has just started writes to; it may have ended already."""
        listen(event, lambda values: self.started(values, values[field]), {*self.given, field}, self.outputs)

    def started(self, values: Values, entered: str | None) -> dict[Any, Any]:
        """Updates of the fields if this is the destination of a preprocessing that was started."""
        work = self.page.preprocessing.snapshot().work
        try:
            was_started = work is not None and work.destination == entered_path(entered)
        except TITrainerError:  # the panel has said so
            was_started = False
        return self.filled(values, str(work.destination)) if work and was_started else {self.last: gr.update()}

    @property
    def given(self) -> set[Any]:
        """The components whose values the handlers get."""
        return {*self.fields, self.source, self.quick.folder, self.quick.files, self.last}

    @property
    def outputs(self) -> list[Any]:
        """The components that the handlers may update."""
        return [self.last, *self.fields, self.source, self.quick.folder, self.quick.about_images]

    def shared(self, values: Values, entered: str | None) -> dict[Any, Any]:
        """Updates of the other fields; none if this is no folder that the visitor may use, or the one before."""
        folder = (entered or "").strip()
        nothing = {self.last: gr.update()}
        if not folder or folder == values[self.last]:
            return nothing
        try:
            is_folder = self.page.dataset_dir(folder).is_dir()
        except (TITrainerError, OSError):  # the panel says so when it uses the folder
            return nothing
        if not is_folder:
            return nothing
        source = {} if (values[self.source] or "").strip() else {self.source: folder}
        return {**self.filled(values, folder), **source}

    def filled(self, values: Values, folder: str) -> dict[Any, Any]:
        """Updates of the fields for a dataset that are empty or have the folder before; what users typed stays."""
        free = ("", (values[self.last] or "").strip())
        updates = {field: folder for field in self.fields if (values[field] or "").strip() in free}
        if not values[self.quick.files] and not (values[self.quick.folder] or "").strip():
            updates |= {self.quick.folder: folder, self.quick.about_images: about_folder(self.page, folder)}
        return {self.last: folder, **updates}
