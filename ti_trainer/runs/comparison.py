"""Compare an embedding with what it was to learn, once it is trained: comparison.png, and figures in settings.json."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from PIL import Image

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.prompts import NAME
from ti_trainer.embedding import negative_name, word_pattern
from ti_trainer.errors import TITrainerError
from ti_trainer.files import atomic
from ti_trainer.host import GenerationRequest
from ti_trainer.offload.plan import ran_out
from ti_trainer.prompts import escaped
from ti_trainer.runs.callbacks import Generate
from ti_trainer.runs.plots import Row, labelled
from ti_trainer.runs.run_folder import Run
from ti_trainer.training.events import Event, Finished
from ti_trainer.training.selection import measure_gaps, measure_slider
from ti_trainer.training.slider import WEIGHTS, about_slider, at_weight
from ti_trainer.training.teacher import Teacher
from ti_trainer.training.trainer import Trainer

SEEDS = 4  # images of each kind
SLIDER_ROWS = 2
GAP, NEGATIVE_GAP = "gap_closed", "negative_gap_closed"  # in settings.json, as all of these
EFFECT, POSITIVE_EFFECT, BOTH_EFFECT = "negative_effect", "positive_effect", "both_effect"
POSITIONS = {weight: f"slider_at_{weight:g}" for weight in WEIGHTS}


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
            figures = dict(zip((GAP, NEGATIVE_GAP), measure_gaps(self.trainer).values(), strict=False))
            figures |= {POSITIONS[weight]: position for weight, position in measure_slider(self.trainer).items()}
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
        if teacher is not None and teacher.negative_prompt:
            rows = self._with_either(teacher)
            changes = (effect(rows[0].images, each.images) for each in rows[1:])
            figures = dict(zip((POSITIVE_EFFECT, EFFECT, BOTH_EFFECT), changes, strict=True))
        elif teacher is None or for_negative_prompt(self.trainer.config):
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
            prompts = [at_weight(line, teacher, each) for each in WEIGHTS]
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

    def _with_either(self, teacher: Teacher) -> list[Row]:
        """The preview prompt with neither embedding, with either, and with both; with the name added if it is not there."""
        name, negative = map(escaped, (self.trainer.embedding_name, negative_name(self.trainer.embedding_name)))
        prompt, against = self.request.prompt, self.request.negative_prompt
        plain, rest = map(teacher.without_name, (prompt, against))
        if not re.search(word_pattern(self.trainer.embedding_name), prompt):
            prompt = ", ".join(filter(None, (plain, name)))
        return [
            Row(f"{plain or 'no prompt'}, without {name} and {negative}", self._images([plain] * SEEDS, rest)),
            Row(f"with {name} in the prompt", self._images([prompt] * SEEDS, rest)),
            Row(f"with {negative} in the negative prompt", self._images([plain] * SEEDS, against)),
            Row("with both", self._images([prompt] * SEEDS, against)),
        ]

    def _images(self, prompts: Sequence[str], negative_prompt: str = "") -> list[Image.Image]:
        seeds = range(self.request.seed, self.request.seed + len(prompts))
        requests = [
            replace(self.request, prompt=prompt, negative_prompt=negative_prompt, seed=seed)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return [self._image(each) for each in requests]

    def _image(self, request: GenerationRequest) -> Image.Image:
        return self.generate(request, {each.name: each.vectors for each in self.trainer.result})


def for_negative_prompt(config: TrainConfig) -> bool:
    """Whether the embedding is for the negative prompt, as its previews use it."""
    if config.teacher_negative_prompt:
        return False
    return NAME in config.preview_negative_prompt and NAME not in config.preview_prompt != ""


def effect(without: Sequence[Image.Image], with_it: Sequence[Image.Image]) -> float:
    """How much a negative embedding changes images: the mean pixel difference, relative to that of the next seed."""
    first, second = ([np.asarray(each.convert("RGB"), float) for each in images] for images in (without, with_it))
    between_seeds = float(np.mean([np.abs(a - b).mean() for a, b in pairwise(first)]))
    changed = float(np.mean([np.abs(a - b).mean() for a, b in zip(first, second, strict=True)]))
    return changed / between_seeds if between_seeds else 0.0


def findings(run: Run) -> list[str]:
    """What was measured, as sentences."""
    measured, settings = run.measured(), run.settings()
    options, name = settings.get("train", {}), str(settings.get("name"))
    who, negative = (name if NEGATIVE_GAP in measured else "The embedding"), negative_name(name)
    what = "LoRA" if options.get("teacher_lora") else "prompt"
    found = about_gap(who, measured.get(GAP), what) + about_gap(negative, measured.get(NEGATIVE_GAP), "negative prompt")
    if positions := {weight: measured[key] for weight, key in POSITIONS.items() if key in measured}:
        found += about_slider(positions, str(options.get("teacher_prompt")), str(options.get("opposite_prompt")))
    if POSITIVE_EFFECT in measured:
        found.append(
            f"{name} in the prompt changes images by {measured[POSITIVE_EFFECT]:.0%} of what another seed changes, "
            f"{negative} in the negative prompt by {measured[EFFECT]:.0%}, both by {measured[BOTH_EFFECT]:.0%}."
        )
    elif EFFECT in measured:
        found.append(f"In the negative prompt, it changes images by {measured[EFFECT]:.0%} of what another seed changes.")
    return found


def about_gap(who: str, gap: float | None, what: str) -> list[str]:
    """How near an embedding comes to what it was to learn; `what` says what that is."""
    if gap is None:
        return []
    if gap < 0:
        without = "it and the embedding" if what == "LoRA" else "any text"
        return [f"{who}'s predictions are farther from the {what}'s than those without {without}: compare the images."]
    ends = "the model without and with the LoRA" if what == "LoRA" else f"no text and the {what}"
    return [f"{who} closes {gap:.1%} of the gap between {ends}, on noise that is not trained on."]
