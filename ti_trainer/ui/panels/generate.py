"""The panel Generate, for the standalone page: what a prompt with the new word draws. A WebUI has better ones."""

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

MOST = 8  # images at a time


@dataclass(frozen=True)
class Generate:
    """What other panels need of this one: fields, by the options of previews that say the same."""

    fields: Mapping[str, Any]


def panel(page: Page) -> Generate:
    """Lay it out."""
    with gr.Row(elem_classes=["ti-columns"]):
        with gr.Column(elem_classes=["ti-form"]):
            prompt = gr.Textbox(
                label="Prompt",
                info="Every embedding of the folder is a word here.",
                value=proposed(page),
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
                seed = gr.Number(value=1, precision=0, label="Seed", elem_id="ti_trainer_generate_seed")
                count = gr.Slider(1, MOST, value=4, step=1, label="Images", elem_id="ti_trainer_generate_count")
            with gr.Row():
                side = "0 is what the model was made for."
                width = gr.Number(value=0, precision=0, label="Width", info=side, elem_id="ti_trainer_generate_width")
                height = gr.Number(value=0, precision=0, label="Height", info=side, elem_id="ti_trainer_generate_height")
            button = gr.Button("Generate", variant="primary", elem_id="ti_trainer_generate_button")
        with gr.Column(elem_classes=["ti-results"]):
            said = gr.HTML(elem_id="ti_trainer_generate_said")
            images = gr.Gallery(
                show_label=False, columns=4, height=420, object_fit="contain", elem_id="ti_trainer_generate_images"
            )
    inputs = [prompt, negative, steps, scale, seed, count, width, height]
    for each in inputs:
        unsaved(each)

    def generate(*given: Any) -> Iterator[list[Any]]:
        done: list[tuple[Any, str]] = []
        at_last = ""
        try:
            for image, caption, report in drawn(page, *given):
                done.append((image, caption))
                at_last = said_of(report)
                yield [said_of(report, f"{len(done)} of {int(given[5])}. "), gr.update(value=list(done))]
            yield [at_last, gr.update()]
        except (TITrainerError, OSError) as error:
            yield [refusal(error), gr.update()]

    listen(button.click, generate, inputs, [said, images], queue=True)
    return Generate({"preview_prompt": prompt, "preview_negative_prompt": negative, "preview_cfg_scale": scale})


def proposed(page: Page, word: str = "") -> str:
    """The prompt that stands there, as long as nobody has said anything else, with this word or the first one."""
    return f"a photo of {escaped(word or (page.prefilled.name if page.prefilled else 'my-thing'))} on grass"


def said_of(report: PromptReport, progress: str = "") -> str:
    """What became of the prompts' names, warnings first."""
    return "".join(notice("warning", each) for each in report.warnings) + notice("info", f"{progress}{report.used}")


def drawn(
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
    """Images with the seeds that follow each other, and what became of the prompts' names.

    ConfigError while a training goes on, or for a wrong entry.
    """
    page.refuse_if_busy("generate")
    first = int(seed or 0)
    if not 0 <= first < 2**32 - MOST:
        message = f"Seed: found {first}, expected a number of 0 to {2**32 - MOST - 1}."
        raise ConfigError(message)
    sides = [int(side or 0) for side in (width, height)]
    if any(side % 8 or not 0 <= side <= 2048 for side in sides):
        message = f"Width and height: found {sides[0]} x {sides[1]}, expected multiples of 8 up to 2048, or 0."
        raise ConfigError(message)
    with page.host.lock():
        model = page.host.open_model()
        words, passed_over = embeddings_dir.usable(page.host.embeddings_dir, model)
        prompts = {"prompt": prompt or "", "negative prompt": negative or ""}
        report = prompt_report(model, prompts, words, passed_over)
        for number in range(min(int(count), MOST)):
            request = GenerationRequest(*prompts.values(), int(steps), float(scale), first + number, *sides)
            yield page.host.generate(model, request, words), f"seed {first + number}", report
