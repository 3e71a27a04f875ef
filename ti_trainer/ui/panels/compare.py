"""The Compare panel: copies of runs and embeddings with the same prompts and seeds, as a table of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.prompts import NAME, Prompter, load_plain, load_template
from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.files import entered_path
from ti_trainer.host import GenerationRequest, ModelOptions
from ti_trainer.runs.builders import model_options, requests_of
from ti_trainer.runs.run_folder import Run
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import compare_progress, runs
from ti_trainer.ui.render import notice, refusal
from ti_trainer.wording import counted
from ti_trainer.workbench import candidates, library
from ti_trainer.workbench.compare import Comparison
from ti_trainer.workbench.comparison_settings import about_size, prompts_of, seeds_of, weights_of
from ti_trainer.workbench.scores import Scoring

PREFIX = "ti_trainer_compare_"
PROMPTS = f"a photo of {NAME}\na painting of {NAME}"
DEFAULT_SAMPLER = "the default"
WELCOME = (
    "Choose copies of a run and press Compare: each is used with the same prompts and seeds, and the images appear beside "
    "each other here. They are also saved in the folder of runs."
)
SHOW = "() => { window.tiTrainerShow('Embeddings'); setTimeout(() => window.tiTrainerShow('Compare'), 250); }"
SHOW_PROGRESS = (
    "() => { window.tiTrainerRefresh(); (document.querySelector('gradio-app')?.shadowRoot ?? document)"
    ".querySelector('#ti_trainer_compare_progress')?.scrollIntoView({ behavior: 'smooth', block: 'nearest' }); }"
)
Values = Mapping[Any, Any]  # of components, as gradio passes them


@dataclass
class Compare:
    """The panel's components; `live` are those that `train_progress.refresh` keeps up to date."""

    page: Page
    fields: dict[str, Any]
    message: Any
    live: dict[str, Any]

    def entered(self, values: Values) -> dict[str, Any]:
        """What is in the fields, by their names."""
        return {name: values[field] for name, field in self.fields.items()}


def panel(page: Page) -> Compare:
    """Add the form on the left, and progress and images on the right."""
    fields: dict[str, Any] = {}
    with gr.Row(elem_classes=["ti-columns"]):
        with gr.Column(elem_classes=["ti-form"]):
            _form(page, fields)
            about = gr.HTML(elem_id=PREFIX + "about")
            start = gr.Button("Compare", variant="primary", elem_id=PREFIX + "start")
            message = gr.HTML(notice("info", WELCOME), elem_id=PREFIX + "message")
        with gr.Column(elem_classes=["ti-results"]):
            live = compare_progress.panel(page)
    made = Compare(page, fields, message, {**live, "compare_runs": fields["runs"]})
    for each in fields.values():
        unsaved(each)
    started = listen(start.click, partial(_start, made), set(fields.values()), [message])
    listen(started.then, None, js=SHOW_PROGRESS)
    listen(fields["runs"].change, partial(_choose, page), [fields["runs"], fields["copies"]], [fields["copies"]])
    listen(fields["embeddings"].focus, lambda: gr.update(choices=names(page)), [], [fields["embeddings"]])
    sizes = [fields[name] for name in ("copies", "embeddings", "prompts", "seeds", "weights")]
    for each in sizes:
        listen(each.change, partial(_about, page), sizes, [about])
    return made


def wire(panel: Compare, runs_panel: runs.Runs, *current: Any) -> None:
    """Have the Runs panel's button, and those for the current run, open this tab with the run filled in."""
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


def _form(page: Page, fields: dict[str, Any]) -> None:
    """Add the fields."""

    def text(name: str, label: str, info: str, value: str = "", lines: int = 1) -> None:
        fields[name] = gr.Textbox(
            label=label,
            info=info,
            value=value,
            lines=lines,
            max_lines=max(8, lines) if lines > 1 else 1,
            elem_id=PREFIX + name,
        )

    def number(name: str, label: str, info: str, value: float, precision: int | None = 0) -> None:
        fields[name] = gr.Number(value=value, precision=precision, label=label, info=info, elem_id=PREFIX + name)

    def several(name: str, label: str, info: str, choices: list[str]) -> None:
        fields[name] = gr.Dropdown(choices, value=[], multiselect=True, label=label, info=info, elem_id=PREFIX + name)

    several("runs", "Runs", "Copies of several runs can be compared.", runs.labels(page))
    several("copies", "Copies", "Saved during a run, by step. Each is a row.", [])
    several("embeddings", "Embeddings", "Of the embeddings folder, to compare with.", names(page))
    text("prompts", "Prompts", f"One a line; {NAME} stands for the embedding.", PROMPTS, 3)
    text("negative_prompt", "Negative prompt", f"The same for all; {NAME} is possible here, too.")
    with gr.Row():
        text("seeds", "Seeds", "Such as 1, 2 or 1-4.", "1, 2")
        text("weights", "Weights", "Such as 1, 0.8.", "1")
    default = GenerationRequest("")
    with gr.Accordion("More options", open=False):
        with gr.Row():
            number("steps", "Sampling steps", "20 to 30 are usual.", default.steps)
            number("cfg_scale", "CFG Scale", "5 to 8 are usual.", default.cfg_scale, None)
        with gr.Row():
            number("width", "Width", "In px; 0 is the model's own size.", 0)
            number("height", "Height", "In px; 0 is the model's own size.", 0)
        if page.host.samplers:
            choices = [DEFAULT_SAMPLER, *page.host.samplers]
            fields["sampler"] = gr.Dropdown(choices, value=DEFAULT_SAMPLER, label="Sampler", elem_id=PREFIX + "sampler")
        text("similarity", "CLIP or DINO folder", "Of transformers: measures the similarity to the training images.")
        text("images", "Training images", "A folder; empty: those of the first run. Only used with a CLIP or DINO.")


def filled(panel: Compare, run: Run) -> dict[Any, Any]:
    """Updates of the fields for a run: its copies, and what its previews were generated with."""
    fields, label, copies = panel.fields, runs.label_of(run), candidates.suggested(run)
    config = _config(run) or TrainConfig()
    name = str(run.settings().get("name"))
    (request,) = requests_of(replace(config, preview_prompt="", preview_negative_prompt=""), name)
    updates = {
        "runs": gr.update(choices=runs.labels(panel.page), value=[label]),
        "copies": gr.update(choices=_choices([run]), value=[_choice(run, each) for each in copies]),
        "embeddings": gr.update(value=[]),
        "prompts": "\n".join(_prompts(panel.page, config)),
        "negative_prompt": config.preview_negative_prompt,
        "steps": request.steps,
        "cfg_scale": request.cfg_scale,
        "width": request.width,
        "height": request.height,
        "sampler": request.sampler if request.sampler in panel.page.host.samplers else DEFAULT_SAMPLER,
        "images": "",
    }
    return {fields[name]: update for name, update in updates.items() if name in fields}


def comparison_of(page: Page, entered: Mapping[str, Any]) -> Comparison:
    """What was entered; ConfigError if it cannot be compared."""
    chosen, compared = _chosen(page, entered["copies"])
    compared += [candidates.of_folder(page.host.embeddings_dir, name) for name in entered["embeddings"] or ()]
    sampler = entered.get("sampler") or DEFAULT_SAMPLER
    request = GenerationRequest(
        "",
        (entered["negative_prompt"] or "").strip(),
        int(entered["steps"] or 0),
        float(entered["cfg_scale"] or 0),
        1,
        int(entered["width"] or 0),
        int(entered["height"] or 0),
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


def _start(panel: Compare, values: Values) -> str:
    """Start, or say what is wrong."""
    try:
        work = comparison_of(panel.page, panel.entered(values))
        panel.page.compare(work)
    except (TITrainerError, OSError) as error:
        return refusal(error)
    return notice("info", f"Generating {counted(work.size, 'image')}.")


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
    choices, kept = _choices(found), list[str]()
    for run in found:
        of_run = [each for each in copies or () if each in _choices([run])]
        kept += of_run or [_choice(run, each) for each in candidates.suggested(run)]
    return gr.update(choices=choices, value=[each for each in choices if each in kept])


def _choices(found: Sequence[Run]) -> list[str]:
    return [_choice(run, copy) for run in found for copy in candidates.copies_of(run)]


def _choice(run: Run, copy: str) -> str:
    return f"{run.id}: {copy}"


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
    config = _config(found[0]) if found else None
    return None if config is None else model_options(config)


def _config(run: Run) -> TrainConfig | None:
    """The run's options; None for those of another version."""
    try:
        return TrainConfig.from_dict(run.options())
    except ConfigError:
        return None


def _scoring(entered: Mapping[str, Any], found: Sequence[Run]) -> Scoring | None:
    folder, images = entered_path(entered["similarity"]), entered_path(entered["images"])
    if folder == Path():
        return None
    if images == Path() and found:
        images = Path(str(found[0].settings().get("images") or ""))
    return Scoring(folder, None if images == Path() else images)


def _prompts(page: Page, config: TrainConfig) -> list[str]:
    """The preview prompt of a run, or else the first lines of its template."""
    if NAME in config.preview_prompt:
        return [config.preview_prompt]
    if NAME in config.preview_negative_prompt and config.preview_prompt:
        return [config.preview_prompt]
    try:
        dirs = page.host.template_dirs
        lines = Prompter("", load_template(config.template, dirs), plain=load_plain(config.template, dirs)).uncaptioned
    except ConfigError:  # the template was deleted
        return PROMPTS.splitlines()
    return list(dict.fromkeys(lines))[:2]


def names(page: Page) -> list[str]:
    """The embeddings of the folder."""
    return library.names(page.host.embeddings_dir)
