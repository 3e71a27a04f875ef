"""The Generate panel of the standalone page: try an embedding in a prompt. In a WebUI, txt2img does that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.formats import embeddings_dir
from ti_trainer.formats.naming import PromptReport, prompt_report
from ti_trainer.host import GenerationRequest
from ti_trainer.prompts import escaped
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.render import notice, refusal
from ti_trainer.ui.widgets import whole

MAX_IMAGES = 8  # at a time


@dataclass(frozen=True)
class Generate:
    """What other panels need: fields, by the options of previews that have the same meaning."""

    fields: Mapping[str, Any]


def panel(page: Page) -> Generate:
    """Add the form and the gallery."""
    with gr.Row(elem_classes=["ti-columns"]):
        with gr.Column(elem_classes=["ti-form"]):
            prompt = gr.Textbox(
                label="Prompt",
                info="Write an embedding's name to use it.",
                value=default_prompt(page),
                lines=2,
                elem_id="ti_trainer_generate_prompt",
            )
            negative = gr.Textbox(label="Negative prompt", lines=1, elem_id="ti_trainer_generate_negative")
            with gr.Row():
                steps = gr.Slider(
                    1,
                    150,
                    value=GenerationRequest.steps,
                    step=1,
                    label="Sampling steps",
                    elem_id="ti_trainer_generate_steps",
                )
                scale = gr.Slider(
                    1,
                    30,
                    value=GenerationRequest.cfg_scale,
                    step=0.5,
                    label="CFG Scale",
                    elem_id="ti_trainer_generate_scale",
                )
            with gr.Row():
                seed = gr.Number(value=1, label="Seed", elem_id="ti_trainer_generate_seed")
                count = gr.Slider(
                    1, MAX_IMAGES, value=4, step=1, label="Number of images", elem_id="ti_trainer_generate_count"
                )
            with gr.Row():
                info = "In px; 0 is the model's own size."
                width = gr.Number(value=0, label="Width", info=info, elem_id="ti_trainer_generate_width")
                height = gr.Number(value=0, label="Height", info=info, elem_id="ti_trainer_generate_height")
            button = gr.Button("Generate", variant="primary", elem_id="ti_trainer_generate_button")
        with gr.Column(elem_classes=["ti-results"]):
            message = gr.HTML(elem_id="ti_trainer_generate_message")
            images = gr.Gallery(
                show_label=False, columns=4, height=420, object_fit="contain", elem_id="ti_trainer_generate_images"
            )
    inputs = [prompt, negative, steps, scale, seed, count, width, height]
    for each in inputs:
        unsaved(each)

    def generate(values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        entered = [values[each] for each in inputs]
        done: list[tuple[Any, str]] = []
        html = ""
        try:
            for image, caption, report in generated(page, *entered):
                done.append((image, caption))
                html = report_html(report)
                yield {message: report_html(report, f"{len(done)} of {int(values[count])}. "), images: list(done)}
            yield {message: html}
        except (TITrainerError, OSError) as error:
            yield {message: refusal(error)}

    listen(button.click, generate, set(inputs), [message, images], queue=True)
    return Generate({"preview_prompt": prompt, "preview_negative_prompt": negative, "preview_cfg_scale": scale})


def default_prompt(page: Page, name: str = "") -> str:
    """The initial prompt, with this embedding or the demonstration's."""
    return f"a photo of {escaped(name or (page.prefilled.name if page.prefilled else 'my-thing'))} on grass"


def report_html(report: PromptReport, progress: str = "") -> str:
    """Which embeddings the prompts use, after warnings about names that could not be used."""
    return "".join(notice("warning", each) for each in report.warnings) + notice("info", f"{progress}{report.used}")


def generated(
    page: Page,
    prompt: str,
    negative: str,
    steps: float,
    scale: float,
    seed: float | None,
    count: float,
    width: float | None,
    height: float | None,
) -> Iterator[tuple[Any, str, PromptReport]]:
    """Generate images with consecutive seeds; yields each with its caption and the report on the prompts' embeddings.

    BusyError during a run, and ConfigError for an invalid value.
    """
    page.refuse_if_busy("generate images")
    first, images = whole(seed, "Seed"), whole(count, "Number of images")
    if not 0 <= first < 2**32 - MAX_IMAGES:
        message = f"Seed: found {first}, expected a number from 0 to {2**32 - MAX_IMAGES - 1}."
        raise ConfigError(message)
    sides = [whole(width, "Width"), whole(height, "Height")]
    steps = whole(steps, "Sampling steps")
    if any(side % 8 or not 0 <= side <= 2048 for side in sides):
        message = f"Width and height: found {sides[0]} x {sides[1]}, expected multiples of 8 up to 2048, or 0."
        raise ConfigError(message)
    with page.host.lock():
        model = page.host.open_model()
        embeddings, skipped = embeddings_dir.usable(page.host.embeddings_dir, model)
        prompts = {"prompt": prompt or "", "negative prompt": negative or ""}
        report = prompt_report(model, prompts, embeddings, skipped)
        for number in range(min(images, MAX_IMAGES)):
            request = GenerationRequest(
                prompts["prompt"], prompts["negative prompt"], steps, float(scale), first + number, sides[0], sides[1]
            )
            yield page.host.generate(model, request, embeddings), f"Seed {first + number}", report
