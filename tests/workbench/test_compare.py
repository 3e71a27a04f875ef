"""Comparisons: what is generated, kept, continued and measured, and what is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import D, TinyHost
from PIL import Image

from ti_trainer import formats
from ti_trainer.embedding import LEARNED_FROM, Embedding
from ti_trainer.errors import BusyError, ConfigError, TrainingError
from ti_trainer.formats import embeddings_dir
from ti_trainer.host import GenerationRequest
from ti_trainer.runs.job import Job
from ti_trainer.runs.run_folder import Run
from ti_trainer.workbench import candidates, comparison_settings
from ti_trainer.workbench.compare import STAND_IN, Cell, Comparison
from ti_trainer.workbench.compare_job import CompareJob
from ti_trainer.workbench.comparison_run import Outcome, Progress, run
from ti_trainer.workbench.scores import Scoring

NEGATIVE = f"{STAND_IN}-neg"


class Painter(TinyHost):
    """A host that records what it is asked for, and paints the embedding's first number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.asked: list[tuple[GenerationRequest, dict[str, torch.Tensor]]] = []
        self.before_image: Callable[[int], None] = lambda number: None

    def generate(self, model: object, request: GenerationRequest, embeddings: Mapping[str, Mapping[str, torch.Tensor]]):
        self.before_image(len(self.asked))
        vectors = {name: each["clip_l"] for name, each in embeddings.items()}
        self.asked.append((request, vectors))
        shade = int(255 * float(vectors[STAND_IN][0, 0]))
        return Image.new("RGB", (16, 16), (shade, request.seed, 0))


def embedding(name: str, value: float, step: int = 0, width: int = D) -> Embedding:
    return Embedding(name, {"clip_l": torch.full((2, width), value)}, step, info={"init_text": "red cat"})


@pytest.fixture
def host(tmp_path: Path) -> Painter:
    return Painter(tmp_path)


@pytest.fixture
def trained(host: Painter) -> Callable[..., Run]:
    """Makes a run of x-word with copies at these steps, the value of each being step / 1000."""

    def make(*steps: int, negative: bool = False, losses: Mapping[int, float] | None = None) -> Run:
        made = Run.create(host.log_dir, "x-word", {"name": "x-word", "images": "gone", "model": "other", "model_hash": "ff"})
        for step in steps:
            made.write_copy(embedding("x-word", step / 1000, step))
            if negative:
                made.write_copy(embedding("x-word-neg", step / 1000, step))
        if losses:
            rows = "".join(f"{step},{loss}\n" for step, loss in losses.items())
            made.validation_file.write_text(f"step,loss\n{rows}")
        return made

    return make


@pytest.fixture
def comparison(host: Painter, trained: Callable[..., Run]) -> Comparison:
    """Two copies x two prompts x two seeds."""
    copies = candidates.of_run(trained(100, 200, losses={100: 0.5}), ["200", "100"])
    return Comparison(host, tuple(copies), ("a photo of [name]", "[name], [name]"), (7, 8))


def test_each_copy_is_used_with_each_prompt_seed_and_weight(host: Painter, comparison: Comparison) -> None:
    comparison = replace(comparison, weights=(1.0, 0.8))
    told: list[Progress] = []
    outcome = run(comparison, told.append)
    assert (outcome.done, outcome.total, outcome.made, outcome.stopped) == (16, 16, 16, False)
    assert [request.seed for request, _ in host.asked] == [7] * 4 + [8] * 4 + [7] * 4 + [8] * 4
    assert [request.prompt for request, _ in host.asked[:4]] == [
        "a photo of ti-compared",
        "a photo of (ti-compared:0.8)",
    ] * 2
    assert host.asked[-1][0].prompt == "(ti-compared:0.8), (ti-compared:0.8)"
    assert [float(vectors[STAND_IN][0, 0]) for _, vectors in host.asked[:4]] == pytest.approx([0.2, 0.2, 0.1, 0.1])
    assert [(each.done, each.total) for each in told] == [(number, 16) for number in range(17)]
    assert host.told[-1] == (15, 16, "Comparing x-word: image 16 of 16")
    assert host.shown == 16
    assert comparison.row_lines(2, {}) == ["x-word, step 100", "weight 1", "validation loss 0.50000"]
    assert comparison.row_lines(3, {}) == ["x-word, step 100", "weight 0.8"], "where the loss was not measured"
    saved = json.loads((outcome.folder / "comparison.json").read_text())
    assert saved["settings"]["seeds"] == [7, 8]
    assert saved["results"]["validation_loss"] == [None, 0.5]
    assert "was trained on other" in " ".join(outcome.notes)
    with Image.open(outcome.grid) as grid:
        assert grid.width > 4 * 128
    assert not Run.all(host.log_dir)[1:], "a comparison is not a run"


def test_what_is_finished_is_kept_and_other_settings_are_a_new_comparison(host: Painter, comparison: Comparison) -> None:
    first = run(comparison, should_stop=lambda: len(host.asked) == 3)
    assert (first.done, first.stopped) == (3, True)
    assert "Stopped after 3 of 8 images" in first.summary
    assert first.grid.is_file(), "a part of the grid is better than none"
    times = {path: path.stat().st_mtime_ns for path in first.folder.glob("0*.png")}
    again = run(comparison)
    assert (again.folder, again.done, again.made, again.stopped) == (first.folder, 8, 5, False)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert any("Continued" in note for note in again.notes)
    other = run(replace(comparison, seeds=(9,)))
    assert other.folder.name == "x-word-2"
    assert any("new comparison" in note for note in other.notes)
    assert run(comparison).made == 0
    (first.folder / "comparison.json").write_text("{")
    assert run(comparison).folder not in (first.folder, other.folder), "whose settings are unknown"


def test_a_negative_is_used_as_in_its_training(host: Painter, trained: Callable[..., Run]) -> None:
    copies = candidates.of_run(trained(100, negative=True), ["100"])
    request = GenerationRequest("", "blurry", cfg_scale=3)
    run(Comparison(host, tuple(copies), ("a photo of [name]",), (1,), (0.5,), request))
    asked, vectors = host.asked[0]
    assert asked.negative_prompt == f"a photo of ({NEGATIVE}:0.5), blurry"
    assert set(vectors) == {STAND_IN, NEGATIVE}
    assert asked.cfg_scale == 3
    learned = [replace(each, negative=replace(each.negative, info={LEARNED_FROM: "a prompt"})) for each in copies]
    run(Comparison(host, tuple(learned), ("a photo of [name]",), (2,), (0.5,), request))
    assert host.asked[1][0].negative_prompt == f"({NEGATIVE}:0.5), blurry"


def test_embeddings_of_the_folder_are_compared_and_used_by_their_names(host: Painter, comparison: Comparison) -> None:
    for name, width in (("other", D), ("large", 2 * D)):
        formats.write(embedding(name, 0.9, width=width), host.embeddings_dir / f"{name}.safetensors")
    (host.embeddings_dir / "broken.pt").write_bytes(b"no embedding")
    both = (*comparison.candidates[:1], candidates.of_folder(host.embeddings_dir, "other"))
    outcome = run(replace(comparison, candidates=both, prompts=("[name] beside other, large and broken",)))
    assert [float(vectors[STAND_IN][0, 0]) for _, vectors in host.asked[:2]] == pytest.approx([0.2, 0.9])
    assert set(host.asked[0][1]) == {STAND_IN, "other"}
    assert outcome.folder.name == "x-word-and-1-more"
    notes = " ".join(outcome.notes)
    assert "large in the prompts is not used" in notes
    assert "broken in the prompts is not used" in notes
    with pytest.raises(ConfigError, match="'large' is for"):
        run(replace(comparison, candidates=(candidates.of_folder(host.embeddings_dir, "large"),)))
    with pytest.raises(ConfigError, match="There is no embedding"):
        candidates.of_folder(host.embeddings_dir, "../logs")


def test_the_hosts_interrupt_stops_it_and_failures_keep_what_is_finished(host: Painter, comparison: Comparison) -> None:
    def interrupted(number: int) -> None:
        if number == 2:
            host.interrupt.set()
            raise TrainingError("the WebUI was interrupted.")

    host.before_image = interrupted
    outcome = run(comparison)
    assert (outcome.done, outcome.stopped) == (2, True)
    host.interrupt.clear()

    def failing(number: int) -> None:
        raise TrainingError("no sampler")

    host.before_image = failing
    with pytest.raises(TrainingError, match="no sampler"):
        run(comparison)
    host.before_image = lambda number: None
    assert run(comparison).made == 6


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"candidates": ()}, "copies"),
        ({"prompts": ()}, "prompts"),
        ({"prompts": ("a cat",)}, "prompts"),
        ({"prompts": ("[name]" * 400,)}, "prompts"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": (-1,)}, "seeds"),
        ({"seeds": tuple(range(200))}, "size"),
        ({"weights": ()}, "weights"),
        ({"weights": (float("nan"),)}, "weights"),
        ({"weights": (1e-7,)}, "weights"),
        ({"request": GenerationRequest("", steps=0)}, "steps"),
        ({"request": GenerationRequest("", cfg_scale=99)}, "cfg_scale"),
        ({"request": GenerationRequest("", width=20)}, "width"),
        ({"scoring": Scoring(Path("nowhere"))}, "similarity"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_written(
    host: Painter, comparison: Comparison, changes: dict[str, object], option: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        run(replace(comparison, **changes))
    assert refused.value.option == option
    assert not (host.log_dir / "comparisons").exists()
    with pytest.raises(ConfigError):
        replace(comparison, **changes).check()


def test_too_many_images_are_refused_with_their_number_and_time(comparison: Comparison) -> None:
    with pytest.raises(ConfigError, match=r"2 copies x 2 prompts x 100 seeds: 400 images; expected at most 300"):
        replace(comparison, seeds=tuple(range(100))).check()
    with pytest.raises(ConfigError, match=r"400 images, about 10 min at 1\.5 s an image"):
        replace(comparison, seeds=tuple(range(100))).check(1.5)
    negative = replace(comparison, prompts=("a cat",), request=GenerationRequest("", "[name]"))
    negative.check()  # an embedding for the negative prompt
    assert negative.request_of(Cell(0, 0)).negative_prompt == STAND_IN


def test_the_lowest_validation_loss_is_marked_within_one_run(host: Painter, trained: Callable[..., Run]) -> None:
    runs = [trained(100, 200, losses={100: 0.5, 200: loss}) for loss in (0.4, 0.3)]
    one = Comparison(host, tuple(candidates.of_run(runs[0], ["200", "100"])), ("[name]",))
    assert [one.row_lines(row, {})[1] for row in range(2)] == ["validation loss 0.40000 (lowest)", "validation loss 0.50000"]
    both = [each for run in runs for each in candidates.of_run(run, ["200", "100"], with_id=True)]
    several = replace(one, candidates=tuple(both))
    assert several.best is None, "they were measured on other images"
    assert len({several.row_lines(row, {})[0] for row in range(4)}) == 4


def test_vectors_that_no_prompt_has_room_for_are_refused(comparison: Comparison) -> None:
    long = replace(comparison.candidates[0], embedding=Embedding("long", {"clip_l": torch.ones(76, D)}))
    with pytest.raises(ConfigError, match="76 vectors"):
        replace(comparison, candidates=(long,)).check()


def test_lists_are_read_as_people_write_them() -> None:
    assert comparison_settings.seeds_of("1, 2,5-7;9  12 1") == (1, 2, 5, 6, 7, 9, 12)
    assert comparison_settings.weights_of("1, 0.8; -1 1") == (1.0, 0.8, -1.0)
    assert comparison_settings.prompts_of(" a [name] \n\n b\n b") == ("a [name]", "b")
    for text in ("1,x", "9-2", "0-9999", "1.5", "99999999999"):
        with pytest.raises(ConfigError) as refused:
            comparison_settings.seeds_of(text)
        assert refused.value.option == "seeds"
    with pytest.raises(ConfigError):
        comparison_settings.weights_of("heavy")


def test_copies_are_suggested_from_first_to_last_with_the_best(trained: Callable[..., Run]) -> None:
    assert candidates.suggested(trained()) == []
    assert candidates.suggested(trained(5)) == ["5"]
    steps = range(100, 1100, 100)
    assert candidates.suggested(trained(*steps)) == ["1000", "700", "400", "100"]
    with_best = trained(*steps, losses={0: 0.1, 300: 0.2, 400: 0.3})
    assert candidates.best_of(with_best) == "300"
    assert candidates.suggested(with_best) == ["1000", "700", "300", "100"]
    with pytest.raises(ConfigError, match="does not have") as refused:
        candidates.of_run(with_best, ["123"])
    assert refused.value.option == "copies"


def ended(job: CompareJob) -> Outcome | None:
    job.wait(20)
    assert not job.snapshot().active
    return job.snapshot().outcome


def test_the_job_runs_one_at_a_time_and_never_beside_a_training(host: Painter, comparison: Comparison) -> None:
    job, training, go = CompareJob(), Job(), threading.Event()
    training.guard = job.refuse_if_active
    host.before_image = lambda number: go.wait(20)
    job.start(comparison, training)
    for start in (lambda: job.start(comparison, training), lambda: training.start(None)):
        with pytest.raises(BusyError, match="being compared"):
            start()
    assert job.snapshot().status == "comparing"
    job.stop()
    go.set()
    outcome = ended(job)
    assert outcome is not None
    assert job.snapshot().status == "stopped"
    training.update(status="training")
    with pytest.raises(BusyError, match="being trained"):
        job.start(comparison, training)
    training.update(status="done")
    job.start(comparison, training)
    assert ended(job).done == 8
    assert (job.snapshot().status, job.snapshot().before, job.per_image_s is not None) == ("done", outcome.done, True)


def test_the_job_tells_why_it_failed_and_can_be_started_again(host: Painter, comparison: Comparison) -> None:
    job = CompareJob()

    def broken(number: int) -> None:
        raise ZeroDivisionError("odd")

    host.before_image = broken
    job.start(comparison, Job())
    ended(job)
    assert (job.snapshot().status, "Unexpected ZeroDivisionError" in job.snapshot().message) == ("failed", True)
    host.before_image = lambda number: None
    job.start(comparison, Job())
    assert ended(job).done == 8


def test_embeddings_dir_is_left_as_it_was(host: Painter, comparison: Comparison) -> None:
    embeddings_dir.create(host.embeddings_dir, host.model, "x-word", "cat", 1)
    before = {path.name: path.read_bytes() for path in host.embeddings_dir.iterdir()}
    run(comparison)
    assert {path.name: path.read_bytes() for path in host.embeddings_dir.iterdir()} == before
    assert host.changes == 0
