"""The Compare panel: copies of runs and embeddings with the same prompts and seeds, as a table of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.files import entered_path
from ti_trainer.host import GenerationRequest, ModelOptions
from ti_trainer.runs.builders import model_options
from ti_trainer.runs.run_folder import Run
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import compare_earlier, compare_form, compare_progress, runs
from ti_trainer.ui.panels.compare_form import (
    DEFAULT_SAMPLER,
    PREFIX,
    Compare,
    Values,
    choice,
    choices,
    config_of,
    filled,
    names,
)
from ti_trainer.ui.render import notice, refusal
from ti_trainer.ui.widgets import whole
from ti_trainer.wording import counted
from ti_trainer.workbench import candidates
from ti_trainer.workbench.compare import Comparison
from ti_trainer.workbench.comparison_settings import about_size, prompts_of, seeds_of, weights_of
from ti_trainer.workbench.scores import Scoring

WELCOME = (
    "Choose copies of a run and press Compare: each is used with the same prompts and seeds, and the images appear beside "
    "each other here. They are also saved in the folder of runs."
)
SHOW = "() => { window.tiTrainerShow('Embeddings'); setTimeout(() => window.tiTrainerShow('Compare'), 250); }"
SHOW_PROGRESS = (
    "() => { window.tiTrainerRefresh(); (document.querySelector('gradio-app')?.shadowRoot ?? document)"
    ".querySelector('#ti_trainer_compare_progress')?.scrollIntoView({ behavior: 'smooth', block: 'nearest' }); }"
)


def panel(page: Page) -> Compare:
    """Add the form on the left, and progress and images on the right."""
    fields: dict[str, Any] = {}
    with gr.Row(elem_classes=["ti-columns"]):
        with gr.Column(elem_classes=["ti-form"]):
            compare_form.add(page, fields)
            about = gr.HTML(elem_id=PREFIX + "about")
            start = gr.Button("Compare", variant="primary", elem_id=PREFIX + "start")
            message = gr.HTML(notice("info", WELCOME), elem_id=PREFIX + "message")
            earlier = compare_earlier.panel(page)
        with gr.Column(elem_classes=["ti-results"]):
            live = compare_progress.panel(page)
            opened = gr.HTML(elem_id=PREFIX + "opened")
    made = Compare(page, fields, message, {**live, "compare_runs": fields["runs"]}, opened)
    compare_earlier.wire(made, earlier)
    for each in fields.values():
        unsaved(each)
    started = listen(start.click, partial(_start, made), set(fields.values()), [message, opened])
    listen(started.then, None, js=SHOW_PROGRESS)
    listen(fields["runs"].change, partial(_choose, page), [fields["runs"], fields["copies"]], [fields["copies"]])
    listen(fields["embeddings"].focus, lambda: gr.update(choices=names(page)), [], [fields["embeddings"]])
    sizes = [fields[name] for name in ("copies", "embeddings", "prompts", "seeds", "weights")]
    for each in sizes:
        listen(each.change, partial(_about, page), sizes, [about])
    return made


def wire(panel: Compare, runs_panel: runs.Runs, loaded: Any, *current: Any) -> None:
    """Have the Runs panel's button, and those for the current run, open this tab with the run filled in.

    `loaded` is the button that is pressed once on a new page: it brings back the form of the last comparison.
    """
    compare_earlier.wire_reload(panel, loaded)
    outputs = [panel.message, *panel.fields.values()]

    def fill(label: str) -> dict[Any, Any]:
        try:
            return {panel.message: "", **filled(panel, runs.find(panel.page, label))}
        except (TITrainerError, OSError) as error:
            return {panel.message: refusal(error)}

    def fill_current() -> dict[Any, Any]:
        run = panel.page.job.snapshot().run
        return fill(runs.label_of(run) if run else "")

    shown = [listen(runs_panel.compare.click, fill, [runs_panel.chosen], outputs)]
    shown += [listen(button.click, fill_current, [], outputs) for button in current]
    for each in shown:
        listen(each.then, None, js=SHOW)


def comparison_of(page: Page, entered: Mapping[str, Any]) -> Comparison:
    """What was entered; ConfigError if it cannot be compared."""
    chosen, compared = _chosen(page, entered["copies"])
    compared += [candidates.of_folder(page.host.embeddings_dir, name) for name in entered["embeddings"] or ()]
    sampler = entered.get("sampler") or DEFAULT_SAMPLER
    request = GenerationRequest(
        "",
        (entered["negative_prompt"] or "").strip(),
        whole(entered["steps"], "Sampling steps"),
        float(entered["cfg_scale"] or 0),
        1,
        whole(entered["width"], "Width"),
        whole(entered["height"], "Height"),
        "" if sampler == DEFAULT_SAMPLER else sampler,
    )
    if request.sampler and request.sampler not in page.host.samplers:
        message = f"Sampler: found {request.sampler}, expected one of the list."
        raise ConfigError(message, "sampler")
    return Comparison(
        page.host,
        tuple(compared),
        prompts_of(entered["prompts"]),
        seeds_of(entered["seeds"]),
        weights_of(entered["weights"]),
        request,
        _options(chosen),
        _scoring(entered, chosen),
    )


def _start(panel: Compare, values: Values) -> dict[Any, Any]:
    """Start, or say what is wrong."""
    try:
        work = comparison_of(panel.page, panel.entered(values))
        panel.page.compare(work)
    except (TITrainerError, OSError) as error:
        return {panel.message: refusal(error)}
    return {panel.message: notice("info", f"Generating {counted(work.size, 'image')}."), panel.opened: ""}


def _about(page: Page, copies: Sequence[str], embeddings: Sequence[str], prompts: str, seeds: str, weights: str) -> str:
    """How many images that makes."""
    try:
        counts = len(prompts_of(prompts)), len(seeds_of(seeds)), len(weights_of(weights))
    except ConfigError as error:
        return notice("warning", str(error))
    rows = len(copies or ()) + len(embeddings or ())
    return notice("info", f"{about_size(rows, *counts, page.comparing.per_image_s)}.") if rows else ""


def _choose(page: Page, labels: Sequence[str] | None, copies: Sequence[str] | None) -> Any:
    """The copies of the chosen runs; those that are chosen stay chosen, and of other runs the suggested ones are."""
    found: list[Run] = []
    for label in labels or ():
        try:
            found.append(runs.find(page, label))
        except ConfigError:  # noqa: PERF203 - deleted in the meantime
            continue
    listed, kept = choices(found), list[str]()
    for run in found:
        of_run = [each for each in copies or () if each in choices([run])]
        kept += of_run or [choice(run, each) for each in candidates.suggested(run)]
    return gr.update(choices=listed, value=[each for each in listed if each in kept])


def _chosen(page: Page, choices: Sequence[str] | None) -> tuple[list[Run], list[candidates.Candidate]]:
    """The runs and the copies of these choices; what was entered is never used as a path."""
    by_run: dict[str, list[str]] = {}
    for each in choices or ():
        run_id, _, copy = each.rpartition(": ")
        by_run.setdefault(run_id, []).append(copy)
    found = [runs.find(page, f"{run_id} (") for run_id in by_run]
    several = len(found) > 1
    of_runs = [candidates.of_run(run, by_run[run.id], with_id=several) for run in found]
    return found, [each for group in of_runs for each in group]


def _options(found: Sequence[Run]) -> ModelOptions | None:
    """How the model was opened for the first run."""
    config = config_of(found[0]) if found else None
    return None if config is None else model_options(config)


def _scoring(entered: Mapping[str, Any], found: Sequence[Run]) -> Scoring | None:
    folder, images = entered_path(entered["similarity"]), entered_path(entered["images"])
    if folder == Path():
        return None
    if images == Path() and found:
        images = Path(str(found[0].settings().get("images") or ""))
    return Scoring(folder, None if images == Path() else images)
