"""Run a comparison: generate the missing images, draw the grid, measure, and write everything into a folder of its own.

LOG/comparisons/<name>/
    comparison.json  grid.png  <row>-<column>.png

The same settings find the same folder again, where images that exist are kept: so a comparison that was interrupted is
continued.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ti_trainer import __version__
from ti_trainer.data.prompts import NAME
from ti_trainer.errors import EmbeddingFormatError, ModelError, TrainingError, explained
from ti_trainer.files import atomic
from ti_trainer.formats import embeddings_dir
from ti_trainer.host import Lease
from ti_trainer.model import DiffusionModel, Vectors, check_fits
from ti_trainer.offload.plan import ran_out
from ti_trainer.prompts import CHUNK, escaped
from ti_trainer.workbench import comparison_folder
from ti_trainer.workbench.compare import Cell, Comparison
from ti_trainer.workbench.comparison_folder import GRID
from ti_trainer.workbench.comparison_grid import draw
from ti_trainer.workbench.scores import Score
from ti_trainer.workbench.similarity import Similarity


@dataclass(frozen=True)
class Progress:
    """How far a comparison is: `what` is "image" or "similarity", of which `done` are finished."""

    what: str
    done: int
    total: int
    folder: Path
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a comparison made. `made` images are new, and each took `per_image_s`; `scores` are by cell."""

    folder: Path
    done: int
    total: int
    made: int
    stopped: bool
    notes: tuple[str, ...] = ()
    per_image_s: float | None = None
    scores: Mapping[Cell, Score] = field(default_factory=dict)

    @property
    def grid(self) -> Path:
        """The image of the whole comparison."""
        return self.folder / GRID

    @property
    def summary(self) -> str:
        """What was made, as a sentence."""
        new = "" if self.made == self.done else f", {self.made} of them new"
        if self.stopped:
            return (
                f"Stopped after {self.done} of {self.total} images{new}. Compare again with the same settings to continue."
            )
        took = f", {self.per_image_s:.1f} s an image" if self.per_image_s is not None else ""
        return f"Compared: {self.done} images{new}{took}."


def run(
    comparison: Comparison,
    report: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Generate what is missing, and measure; stops after an image when `should_stop`. Finished images are always kept."""
    comparison.check()
    network = None if comparison.scoring is None else comparison.scoring.load()  # before hours of generating
    with comparison.host.lock() as lease:
        model = comparison.host.open_model(comparison.options)
        for each in comparison.candidates:
            check_fits(model, each.embedding)
        others, notes = others_in_prompts(comparison, model)
        settings = comparison.settings(model, others)
        folder, found = comparison_folder.find_or_make(comparison.host.log_dir, comparison.title, settings)
        work = _Work(
            comparison,
            model,
            others,
            lease,
            folder,
            [*notes, *other_models(comparison, model), *filter(None, [found])],
            report,
            should_stop,
        )
        began, (made, done) = time.monotonic(), work.generate()
        per_image_s = (time.monotonic() - began) / made if made else None
    stopped = done < comparison.size
    scores = {} if stopped or network is None else work.measure(network)
    work.draw(scores)
    work.record(scores, per_image_s)
    return Outcome(folder, done, comparison.size, made, stopped, tuple(work.notes), per_image_s, scores)


def others_in_prompts(comparison: Comparison, model: DiffusionModel) -> tuple[dict[str, Vectors], list[str]]:
    """The embeddings of the folder that the prompts name, and why some of them are not used."""
    text = "\n".join([*comparison.prompts, comparison.request.negative_prompt]).replace(NAME, "").casefold()
    folder, used, notes = comparison.host.embeddings_dir, dict[str, Vectors](), list[str]()
    files = embeddings_dir.embedding_files(folder)
    for name in sorted({path.stem for path in files if path.suffix.lower() not in embeddings_dir.IMAGES}):
        if escaped(name).casefold() not in text:
            continue
        try:
            embedding, _ = embeddings_dir.load(folder, name)
        except (EmbeddingFormatError, OSError) as error:
            notes.append(f"{name} in the prompts is not used: {explained(error)}")
            continue
        if embedding.widths != dict(model.widths) or embedding.num_vectors > CHUNK:
            notes.append(f"{name} in the prompts is not used: it is for {embedding.family} models.")
        else:
            used[name] = embedding.vectors
    return used, notes


def other_models(comparison: Comparison, model: DiffusionModel) -> list[str]:
    """A sentence for each model that copies were trained on, if it is not this one."""
    trained = dict[str, str]()
    for each in comparison.candidates:
        settings = each.run.settings() if each.run else {}
        if settings.get("model_hash") not in (None, model.checkpoint_hash):
            trained.setdefault(str(settings.get("model")), each.label)
    return [
        f"{label} was trained on {name}, and its images are generated with {model.name}." for name, label in trained.items()
    ]


@dataclass
class _Work:
    """A comparison with the open model and its folder."""

    comparison: Comparison
    model: DiffusionModel
    others: Mapping[str, Vectors]
    lease: Lease
    folder: Path
    notes: list[str]
    report: Callable[[Progress], None]
    should_stop: Callable[[], bool]

    def generate(self) -> tuple[int, int]:
        """Generate the missing images; the number of new ones and of all that exist."""
        comparison = self.comparison
        missing = [cell for cell in comparison.cells if not (self.folder / cell.file).is_file()]
        there, title = comparison.size - len(missing), comparison.title
        for made, cell in enumerate(missing):
            done = there + made
            self._tell("image", done)
            if self._interrupted():
                return made, done
            self.lease.progress(done, comparison.size, f"Comparing {title}: image {done + 1} of {comparison.size}")
            try:
                image = self._image(cell)
            except TrainingError:
                if self._interrupted():  # an image that is unfinished shows nothing
                    return made, done
                raise
            self.lease.show(image)
            with atomic(self.folder / cell.file) as new:
                image.save(new, "PNG")
        self._tell("image", comparison.size)
        return len(missing), comparison.size

    def measure(self, network: Similarity) -> dict[Cell, Score]:
        """The similarity of each image."""
        comparison, scores = self.comparison, dict[Cell, Score]()
        if comparison.scoring is None:
            return scores
        files = {cell: self.folder / cell.file for cell in comparison.cells}
        texts = {cell: comparison.text_of(cell) for cell in files}
        for cell, score in comparison.scoring.measure(network, comparison.host, files, texts, self.notes.append):
            scores[cell] = score
            self._tell("similarity", len(scores))
            if self.should_stop():
                self.notes.append("The similarity was measured on a part of the images.")
                break
        return scores

    def draw(self, scores: Mapping[Cell, Score]) -> None:
        """Write the grid, with gaps where images are missing."""
        comparison = self.comparison
        rows = [comparison.row_lines(row, scores) for row in range(len(comparison.rows))]
        columns = [comparison.column_lines(column) for column in range(len(comparison.columns))]
        files = [[self.folder / Cell(row, column).file for column in range(len(columns))] for row in range(len(rows))]
        grid = draw(files, rows, columns)
        if grid is not None:
            with atomic(self.folder / GRID) as new:
                grid.save(new, "PNG")

    def record(self, scores: Mapping[Cell, Score], per_image_s: float | None) -> None:
        """Write what was measured beside the settings."""
        scoring, saved = self.comparison.scoring, comparison_folder.saved(self.folder)
        earlier = saved.get("results")
        results: dict[str, Any] = dict(earlier) if isinstance(earlier, dict) else {}
        results["validation_loss"] = [each.validation_loss for each in self.comparison.candidates]
        if per_image_s is not None:
            results["seconds_per_image"] = round(per_image_s, 3)
        if scores and scoring is not None:
            of = {"network": str(scoring.folder), "images": str(scoring.images or "")}
            results["similarity"] = of | {cell.file: score.to_dict() for cell, score in scores.items()}
        comparison_folder.save(self.folder, {**saved, "ti_trainer": __version__, "results": results})

    def _image(self, cell: Cell) -> Image.Image:
        embeddings = {**self.others, **self.comparison.embeddings_of(cell.row)}
        try:
            return self.comparison.host.generate(self.model, self.comparison.request_of(cell), embeddings)
        except Exception as error:
            if not ran_out(error):
                raise
            message = "The GPU's memory was not enough for an image of this size: choose a smaller width and height."
            raise ModelError(message) from error

    def _interrupted(self) -> bool:
        return self.should_stop() or self.lease.interrupted()

    def _tell(self, what: str, done: int) -> None:
        self.report(Progress(what, done, self.comparison.size, self.folder, tuple(self.notes)))
