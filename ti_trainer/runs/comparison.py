"""Compare an embedding with what it was to learn, once it is trained: comparison.png, and figures in settings.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from PIL import Image

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.prompts import NAME, weighted
from ti_trainer.errors import TITrainerError
from ti_trainer.files import atomic
from ti_trainer.host import GenerationRequest
from ti_trainer.offload.plan import ran_out
from ti_trainer.prompts import escaped
from ti_trainer.runs.callbacks import Generate
from ti_trainer.runs.plots import Row, labelled
from ti_trainer.runs.run_folder import Run
from ti_trainer.training.events import Event, Finished
from ti_trainer.training.selection import measure_gap
from ti_trainer.training.teacher import Teacher
from ti_trainer.training.trainer import Trainer

SEEDS = 4  # images of each kind
WEIGHTS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # of a slider's name; 0: without it
SLIDER_ROWS = 2
GAP, EFFECT = "gap_closed", "negative_effect"  # in settings.json


@dataclass
class Comparison:
    """At the end of a run that learns from a prompt, or whose previews have the embedding in the negative prompt only."""

    run: Run
    trainer: Trainer
    generate: Generate
    request: GenerationRequest
    warn: Callable[[str], None]

    @classmethod
    def applies_to(cls, config: TrainConfig) -> bool:
        """Whether a run with these options has one."""
        return config.has_teacher or for_negative_prompt(config)

    def __call__(self, event: Event) -> None:
        """Measure at the end; generate images only if the run was not interrupted."""
        if not isinstance(event, Finished):
            return
        try:
            gap = measure_gap(self.trainer)
            figures = {} if gap is None else {GAP: gap}
            if event.reason == "done":
                figures |= self._compare()
        except Exception as error:
            if not (isinstance(error, TITrainerError) or ran_out(error)):  # the embedding still has to be saved
                raise
            self.warn(f"The embedding was not compared with what it was to learn: {error}")
            return
        self.run.record_measured(figures)

    def _compare(self) -> dict[str, float]:
        """Write comparison.png; the figures of a negative embedding."""
        figures: dict[str, float] = {}
        teacher = self.trainer.teacher
        if teacher is None or for_negative_prompt(self.trainer.config):
            rows = self._with_and_without()
            figures[EFFECT] = effect(rows[0].images, rows[1].images)
        else:
            rows = list(self._slider(teacher)) if teacher.opposite else self._beside_the_prompt(teacher)
        with atomic(self.run.path / "comparison.png") as new:
            labelled(rows).save(new)
        return figures

    def _beside_the_prompt(self, teacher: Teacher) -> list[Row]:
        """The prompt above the embedding, in the run's prompts in turn, with a seed for each column.

        With a LoRA, images with neither are below.
        """
        prompts = self.trainer.dataset.prompter.first(SEEDS)
        in_full = [teacher.in_full(each) for each in prompts]
        with teacher.adapting(self.trainer.model):
            taught = Row(teacher.label, self._images(in_full))
        rows = [taught, Row(self.trainer.embedding_name, self._images(prompts))]
        if teacher.lora is not None:
            rows.append(Row("neither", self._images([teacher.without_name(each) for each in prompts])))
        return rows

    def _slider(self, teacher: Teacher) -> Iterator[Row]:
        """The name with weights from negative to positive, in a row for each prompt and seed."""
        name, lines = self.trainer.embedding_name, self.trainer.dataset.prompter.uncaptioned
        labels = [f"{each:+g}" if each else "without" for each in WEIGHTS]
        for number in range(SLIDER_ROWS):
            line, seed = lines[number % len(lines)], self.request.seed + number
            prompts = [
                line.replace(NAME, weighted(name, each)) if each else teacher.without_name(line.replace(NAME, escaped(name)))
                for each in WEIGHTS
            ]
            images = [self._image(replace(self.request, prompt=each, seed=seed)) for each in prompts]
            yield Row(line.replace(NAME, f"({name}:weight)"), images, labels)

    def _with_and_without(self) -> list[Row]:
        """The preview prompt without the embedding in the negative prompt, above the same with it."""
        name = escaped(self.trainer.embedding_name)
        parts = [each.strip() for each in self.request.negative_prompt.split(",")]
        rest = ", ".join(each for each in parts if each and each != name)
        prompts = [self.request.prompt] * SEEDS
        return [
            Row(f"{self.request.prompt}, without {name}", self._images(prompts, rest)),
            Row(f"with {name} in the negative prompt", self._images(prompts, self.request.negative_prompt)),
        ]

    def _images(self, prompts: Sequence[str], negative_prompt: str = "") -> list[Image.Image]:
        seeds = range(self.request.seed, self.request.seed + len(prompts))
        requests = [
            replace(self.request, prompt=prompt, negative_prompt=negative_prompt, seed=seed)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return [self._image(each) for each in requests]

    def _image(self, request: GenerationRequest) -> Image.Image:
        return self.generate(request, {each.name: each.vectors for each in self.trainer.embeddings})


def for_negative_prompt(config: TrainConfig) -> bool:
    """Whether the embedding is for the negative prompt, as its previews use it."""
    return NAME in config.preview_negative_prompt and NAME not in config.preview_prompt != ""


def effect(without: Sequence[Image.Image], with_it: Sequence[Image.Image]) -> float:
    """How much a negative embedding changes images: the mean pixel difference, relative to that of the next seed."""
    first, second = ([np.asarray(each.convert("RGB"), float) for each in images] for images in (without, with_it))
    between_seeds = float(np.mean([np.abs(a - b).mean() for a, b in pairwise(first)]))
    changed = float(np.mean([np.abs(a - b).mean() for a, b in zip(first, second, strict=True)]))
    return changed / between_seeds if between_seeds else 0.0


def findings(run: Run) -> list[str]:
    """What was measured, as sentences."""
    measured, found = run.measured(), []
    lora = run.settings().get("train", {}).get("teacher_lora")
    if GAP in measured and measured[GAP] >= 0:
        ends = "the model without and with the LoRA" if lora else "no text and the prompt"
        gap = f"{measured[GAP]:.1%} of the gap between {ends}"
        found.append(f"The embedding closes {gap}, on noise that is not trained on.")
    elif GAP in measured:
        of, without = ("the LoRA's", "it and the embedding") if lora else ("the prompt's", "any text")
        found.append(f"The embedding's predictions are farther from {of} than those without {without}: compare the images.")
    if EFFECT in measured:
        found.append(f"In the negative prompt, it changes images by {measured[EFFECT]:.0%} of what another seed changes.")
    return found
