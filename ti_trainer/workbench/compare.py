"""Compare embeddings: copies x prompts x seeds x weights as images. `comparison_run.py` generates and measures them.

A row is a copy with a weight, a column a prompt with a seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ti_trainer.data.prompts import NAME, weighted
from ti_trainer.embedding import LEARNED_FROM, negative_name, unwanted
from ti_trainer.host import GenerationRequest, Host, ModelOptions
from ti_trainer.model import DiffusionModel, Vectors
from ti_trainer.prompts import escaped
from ti_trainer.runs.integrity import digest
from ti_trainer.workbench.candidates import Candidate
from ti_trainer.workbench.comparison_settings import check
from ti_trainer.workbench.scores import Score, Scoring

STAND_IN = "ti-compared"  # what the compared embeddings are called in prompts, whatever else is in the embeddings folder


@dataclass(frozen=True)
class Cell:
    """One image, by its row and column."""

    row: int
    column: int

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.row + 1:02d}-{self.column + 1:02d}.png"


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how; `request` has everything but the prompt and the seed. [name] stands for the embedding.

    `options`: how the model is opened; None: as it is. `scoring`: what the images are measured with.
    """

    host: Host
    candidates: tuple[Candidate, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = (1, 2)
    weights: tuple[float, ...] = (1.0,)
    request: GenerationRequest = field(default_factory=lambda: GenerationRequest(""))
    options: ModelOptions | None = None
    scoring: Scoring | None = None

    @cached_property
    def rows(self) -> list[tuple[Candidate, float]]:
        """A copy and a weight for each row."""
        return [(candidate, weight) for candidate in self.candidates for weight in self.weights]

    @cached_property
    def columns(self) -> list[tuple[str, int]]:
        """A prompt and a seed for each column."""
        return [(prompt, seed) for prompt in self.prompts for seed in self.seeds]

    @property
    def cells(self) -> Iterator[Cell]:
        """The images in the order in which they are generated: all copies with the first prompt and seed come first."""
        return (Cell(row, column) for column in range(len(self.columns)) for row in range(len(self.rows)))

    @property
    def size(self) -> int:
        """The number of images."""
        return len(self.rows) * len(self.columns)

    @cached_property
    def best(self) -> Candidate | None:
        """The copy with the lowest validation loss; None for losses of several runs, which are not measured on the same."""
        measured = [(each.validation_loss, each) for each in self.candidates if each.validation_loss is not None]
        if len(measured) < 2 or len({each.run.path for _, each in measured if each.run}) > 1:
            return None
        return min(measured, key=lambda each: each[0])[1]

    @property
    def title(self) -> str:
        """The name of its folder."""
        names = list(dict.fromkeys(each.run.path.name if each.run else each.file.stem for each in self.candidates))
        return names[0] + (f"-and-{len(names) - 1}-more" if len(names) > 1 else "")

    def check(self, per_image_s: float | None = None) -> None:
        """Raise ConfigError for what can be found wrong without the model; `option` is the name of the field."""
        check(self.candidates, self.prompts, self.seeds, self.weights, self.request, per_image_s)
        if self.scoring is not None:
            self.scoring.check(self.host)

    def row_lines(self, row: int, scores: Mapping[Cell, Score]) -> list[str]:
        """What is beside a row: its label, the weight, the validation loss, and what was measured."""
        candidate, weight = self.rows[row]
        lines = [candidate.label]
        if len(self.weights) > 1 or weight != 1:
            lines.append(f"weight {weight:g}")
        if candidate.validation_loss is not None and (weight == 1 or 1 not in self.weights):  # it is that of weight 1
            lowest = " (lowest)" if candidate is self.best else ""
            lines.append(f"validation loss {candidate.validation_loss:.5f}{lowest}")
        mean = Score.mean([score for cell, score in scores.items() if cell.row == row])
        return lines + ([] if mean is None else mean.lines())

    def column_lines(self, column: int) -> tuple[str, str]:
        """What is above a column: the prompt, and the seed."""
        prompt, seed = self.columns[column]
        return prompt, f"seed {seed}"

    def request_of(self, cell: Cell) -> GenerationRequest:
        """The request for a cell, in which the embedding is called STAND_IN. Its negative is used as in its training."""
        (candidate, weight), (prompt, seed) = self.rows[cell.row], self.columns[cell.column]
        name = escaped(STAND_IN) if weight == 1 else weighted(STAND_IN, weight)
        prompt, negative = prompt.replace(NAME, name), self.request.negative_prompt.replace(NAME, name)
        if candidate.negative is not None:
            alone = LEARNED_FROM in candidate.negative.info
            negative = ", ".join(filter(None, (unwanted(name if alone else prompt, STAND_IN), negative)))
        return replace(self.request, prompt=prompt, negative_prompt=negative, seed=seed)

    def embeddings_of(self, row: int) -> dict[str, Vectors]:
        """The row's embedding, and its negative, by their names in the requests."""
        candidate, _ = self.rows[row]
        found: dict[str, Vectors] = {STAND_IN: candidate.embedding.vectors}
        if candidate.negative is not None:
            found[negative_name(STAND_IN)] = candidate.negative.vectors
        return found

    def text_of(self, cell: Cell) -> str:
        """What the image is to show, for a CLIP: the prompt with the initial text in place of the embedding."""
        return self.columns[cell.column][0].replace(NAME, self.rows[cell.row][0].init_text)

    def settings(self, model: DiffusionModel, others: Mapping[str, Vectors]) -> dict[str, Any]:
        """Everything that the images depend on."""
        return {
            "model": model.name,
            "model_hash": model.checkpoint_hash,
            "model_spec": str(model.spec),
            "clip_skip": self.options.clip_skip if self.options else None,
            **self.asked,
            "other_embeddings": {name: digest(each) for name, each in others.items()},
        }

    @property
    def asked(self) -> dict[str, Any]:
        """What was entered."""
        return {
            "candidates": [_about(each) for each in self.candidates],
            "prompts": list(self.prompts),
            "negative_prompt": self.request.negative_prompt,
            "seeds": list(self.seeds),
            "weights": list(self.weights),
            "steps": self.request.steps,
            "cfg_scale": self.request.cfg_scale,
            "width": self.request.width,
            "height": self.request.height,
            "sampler": self.request.sampler,
        }


def _about(candidate: Candidate) -> dict[str, Any]:
    return {
        "label": candidate.label,
        "run": candidate.run.id if candidate.run else None,
        "copy": candidate.copy,
        "file": candidate.file.name,
        "vectors": digest(candidate.embedding.vectors),
        "negative": digest(candidate.negative.vectors) if candidate.negative else None,
    }
