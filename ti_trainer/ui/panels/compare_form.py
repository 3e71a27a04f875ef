"""The form of the Compare panel: its fields, and filling them for a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.prompts import NAME, Prompter, load_plain, load_template
from ti_trainer.errors import ConfigError
from ti_trainer.host import GenerationRequest
from ti_trainer.runs.builders import requests_of
from ti_trainer.runs.run_folder import Run
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import runs
from ti_trainer.workbench import candidates, library

PREFIX = "ti_trainer_compare_"
PROMPTS = f"a photo of {NAME}\na painting of {NAME}"
DEFAULT_SAMPLER = "the default"
Values = Mapping[Any, Any]  # of components, as gradio passes them


@dataclass
class Compare:
    """The panel's components; `live` are those that `train_progress.refresh` keeps up to date.

    `opened` shows an earlier comparison.
    """

    page: Page
    fields: dict[str, Any]
    message: Any
    live: dict[str, Any]
    opened: Any

    def entered(self, values: Values) -> dict[str, Any]:
        """What is in the fields, by their names."""
        return {name: values[field] for name, field in self.fields.items()}


def add(page: Page, fields: dict[str, Any]) -> None:
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

    def number(name: str, label: str, info: str, value: float) -> None:
        fields[name] = gr.Number(value=value, label=label, info=info, elem_id=PREFIX + name)

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
            number("cfg_scale", "CFG Scale", "5 to 8 are usual.", default.cfg_scale)
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
    config = config_of(run) or TrainConfig()
    name = str(run.settings().get("name"))
    (request,) = requests_of(replace(config, preview_prompt="", preview_negative_prompt=""), name)
    updates = {
        "runs": gr.update(choices=runs.labels(panel.page), value=[label]),
        "copies": gr.update(choices=choices([run]), value=[choice(run, each) for each in copies]),
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


def choices(found: Sequence[Run]) -> list[str]:
    """The copies of runs, as they are listed."""
    return [choice(run, copy) for run in found for copy in candidates.copies_of(run)]


def choice(run: Run, copy: str) -> str:
    """A copy of a run, as it is listed."""
    return f"{run.id}: {copy}"


def config_of(run: Run) -> TrainConfig | None:
    """The run's options; None for those of another version."""
    try:
        return TrainConfig.from_dict(run.options())
    except ConfigError:
        return None


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
