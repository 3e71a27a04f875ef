"""The Compare panel: its form comes back after a reload, and earlier comparisons are opened again from a list."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import gradio as gr

from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.runs.run_folder import Run
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import runs
from ti_trainer.ui.panels.compare_form import DEFAULT_SAMPLER, PREFIX, Compare, choices
from ti_trainer.ui.panels.compare_form import names as embeddings_of
from ti_trainer.ui.render import images, notice, refusal
from ti_trainer.ui.thumbnails import thumbnail_uri
from ti_trainer.workbench import comparison_folder

GRID_PX = 1100  # its longer side on the page
SHOW = (
    "() => { (document.querySelector('gradio-app')?.shadowRoot ?? document)"
    ".querySelector('#ti_trainer_compare_opened')?.scrollIntoView({ behavior: 'smooth', block: 'nearest' }); }"
)
Updates = dict[Any, Any]


def panel(page: Page) -> Any:
    """Add the list."""
    with gr.Accordion("Earlier comparisons", open=False):
        return unsaved(
            gr.Dropdown(
                labels(page),
                value=None,
                label="Open again",
                info="Shows it and fills the form with its settings. Compare makes the images that are missing.",
                elem_id=PREFIX + "earlier",
            )
        )


def wire(form: Compare, chosen: Any) -> None:
    """Connect the list."""
    outputs = [form.message, form.opened, *form.fields.values()]
    listen(chosen.focus, lambda: gr.update(choices=labels(form.page)), [], [chosen])
    shown = listen(chosen.change, partial(opened, form), {chosen}, outputs)
    listen(shown.then, None, js=SHOW)


def wire_reload(form: Compare, loaded: Any) -> None:
    """Fill the form when this button is pressed."""
    listen(loaded.click, lambda: current(form), [], [form.message, *form.fields.values()])


def labels(page: Page) -> list[str]:
    """The newest comparisons."""
    return [each.label for each in comparison_folder.earlier(page.host.log_dir)]


def opened(form: Compare, values: Mapping[Any, Any]) -> Updates:
    """The form and the images of an earlier comparison."""
    (label,) = values.values()
    if not label:
        return {form.message: gr.update()}
    try:
        found = comparison_folder.find(form.page.host.log_dir, label)
        grid = thumbnail_uri(found.folder / comparison_folder.GRID, GRID_PX)
        return {
            form.opened: images([(found.label, grid)], wide=True) if grid else "",
            **filled(form, found.settings, *found.measured_with),
        }
    except (TITrainerError, OSError) as error:
        return {form.message: refusal(error)}


def current(form: Compare) -> Updates:
    """The form of the comparison that runs, or ran last."""
    work = form.page.comparing.snapshot().work
    if work is None:
        return {form.message: gr.update()}
    scoring = work.scoring
    return filled(form, work.asked, *(() if scoring is None else (str(scoring.folder), str(scoring.images or ""))))


def filled(form: Compare, asked: Mapping[str, Any], network: str = "", of: str = "") -> Updates:
    """Updates of the fields, and a message about what no longer exists. `asked`: as `Comparison.asked`.

    `network` is the folder of a CLIP or DINO, and `of` that of the images; visitors of a public page do not see them.
    """
    page, fields = form.page, form.fields
    try:
        compared = [(str(each["run"] or ""), str(each["copy"]), str(each["file"])) for each in asked["candidates"]]
        updates: dict[str, Any] = {
            "prompts": "\n".join(map(str, asked["prompts"])),
            "negative_prompt": str(asked["negative_prompt"]),
            "seeds": ", ".join(f"{int(each)}" for each in asked["seeds"]),
            "weights": ", ".join(f"{float(each):g}" for each in asked["weights"]),
            **{name: int(asked[name]) for name in ("steps", "width", "height")},
            "cfg_scale": float(asked["cfg_scale"]),
            "similarity": "" if page.is_public else network,
            "images": "" if page.is_public else of,
            "sampler": asked["sampler"] if asked["sampler"] in page.host.samplers else DEFAULT_SAMPLER,
        }
    except (KeyError, TypeError, ValueError) as error:
        message = "The settings of this comparison are damaged: choose another one."
        raise ConfigError(message) from error
    found = {run: _found(page, run) for run, _, _ in compared if run}
    offered = choices([each for each in found.values() if each])
    names, listed = [file.rpartition(".")[0] for run, _, file in compared if not run], embeddings_of(page)
    wanted = [f"{run}: {copy}" for run, copy, _ in compared if run]
    gone = [each for each in wanted if each not in offered] + [name for name in names if name not in listed]
    updates["runs"] = gr.update(choices=runs.labels(page), value=[runs.label_of(each) for each in found.values() if each])
    updates["copies"] = gr.update(choices=offered, value=[each for each in wanted if each in offered])
    updates["embeddings"] = gr.update(choices=listed, value=[name for name in names if name in listed])
    said = notice("warning", f"No longer there: {', '.join(gone)}.") if gone else ""
    return {form.message: said, **{fields[name]: each for name, each in updates.items() if name in fields}}


def _found(page: Page, run_id: str) -> Run | None:
    try:
        return runs.find(page, f"{run_id} (")
    except ConfigError:
        return None
