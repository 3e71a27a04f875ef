"""Early stopping of runs on disk: what is measured, held out, kept, said and continued."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import TinyHost, TinyModel
from puppet import CONFIG, Puppet, ended

from ti_trainer import formats
from ti_trainer.config.training import TrainConfig
from ti_trainer.data.images import Frame
from ti_trainer.data.loading import DatasetOptions, load_dataset
from ti_trainer.data.prompts import Prompter
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs import early_stopping as runs_early_stopping
from ti_trainer.runs.job import Job
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Controls, Result, Session
from ti_trainer.training import early_stopping, selection
from ti_trainer.training.evaluation import validation_loss
from ti_trainer.training.events import Event
from ti_trainer.training.trainer import Trainer
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import train_progress

QUICK = TrainConfig(max_steps=40, learning_rate="0.01", width=16, height=16, preview_every=0, save_every=1, csv_every=1)
BEST = 6


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure every 2 steps at batch size 1."""
    monkeypatch.setattr(early_stopping, "SHARE", 2.0)
    monkeypatch.setattr(early_stopping, "ROUND", 2)


@pytest.fixture
def overfits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The validation loss falls until step BEST, and is high from then on."""

    def loss(trainer: Trainer) -> float:
        return 1 - 0.1 * trainer.step if trainer.step <= BEST else 2.0

    monkeypatch.setattr(runs_early_stopping, "quick_loss", loss)


@pytest.fixture
def train(tmp_path: Path, images: Callable[..., Path]) -> Callable[..., Result]:
    """Trains x-word from files to files; options are TrainConfig's."""
    folders: dict[int, Path] = {}

    def trained(where: str = "one", count: int = 8, until: int = 99, resume: bool = False, **options: object) -> Result:
        folder = folders.get(count) or folders.setdefault(count, images(*((16, 16),) * count))
        host = TinyHost(tmp_path / where, TinyModel())
        if embeddings_dir.find(host.embeddings_dir, "x-word") is None:
            embeddings_dir.create_pair(host.embeddings_dir, host.model, ("x-word", "red cat", 2), ("blue", 3))
        controls = Controls()

        def stop(event: Event) -> None:
            if event.step >= until:
                controls.stop.set()

        earlier = Run.latest(host.log_dir, "x-word") if resume else None
        session = Session(host, "x-word", folder, replace(QUICK, **options), earlier)
        session.check()
        return session.train(lambda *_: [stop], controls)

    return trained


def vectors_of(file: Path) -> torch.Tensor:
    return formats.read(file).vectors["clip_l"]


@pytest.mark.parametrize("options", [{}, {"negative": True}, {"evaluate_every": 3}, {"ema_rate": 0.9}])
@pytest.mark.usefixtures("overfits")
def test_a_run_ends_with_the_best_step_and_says_so(train: Callable[..., Result], options: dict[str, object]) -> None:
    result = train(**options)
    run, best = result.run, result.embedding.step
    assert (best, result.last_step) == (BEST, BEST + 6)
    assert result.reason == "done"
    assert formats.read(result.embedding_file).step == best
    assert torch.equal(vectors_of(result.embedding_file), vectors_of(dict(run.copies())[best]))
    assert not torch.equal(vectors_of(result.embedding_file), vectors_of(run.copies()[-1][1]))
    if "negative" in options:
        copy = run.path / "embeddings" / f"x-word-neg-{best}.safetensors"
        assert torch.equal(vectors_of(result.negative_file), vectors_of(copy))
    if "evaluate_every" not in options:
        rows = dict(run.validation_losses())
        assert list(rows) == list(range(0, result.last_step + 1, 2))
        assert min(rows, key=rows.get) == best
    else:
        assert [step for step, _ in run.validation_losses()] == list(range(0, result.last_step + 1, 3))
    said = f"Done at step {result.last_step}: the validation loss has not improved since step {best}."
    assert result.verdict.startswith(
        f"{said} Best at step {best} of {result.last_step}; the embedding is that of this step."
    )
    assert "more steps overfit" in result.verdict
    assert result.num_images == 7
    assert len(run.settings()["held_out"]) == 1


@pytest.mark.usefixtures("overfits")
def test_turned_off_it_changes_nothing_and_measuring_changes_no_step(train: Callable[..., Result]) -> None:
    off = train("off", stop_when_done=False)
    assert (off.last_step, off.embedding.step, off.num_images, off.verdict) == (40, 40, 8, "")
    assert not off.run.validation_file.exists()
    assert "held_out" not in off.run.settings()
    on, plain = train("on", count=7, until=11), train("plain", count=7, until=11, stop_when_done=False)
    ours, theirs = (each.run.load_state()[0].vectors["clip_l"] for each in (on, plain))
    assert torch.equal(ours, theirs)
    assert on.run.loss_file.read_bytes() == plain.run.loss_file.read_bytes()
    assert (on.embedding.step, plain.embedding.step) == (BEST, 11)
    short = train("short", max_steps=8)
    assert (short.num_images, short.verdict, short.run.validation_file.exists()) == (8, "", False)


@pytest.mark.parametrize("until", [3, 4, 8, 9])
@pytest.mark.usefixtures("overfits")
def test_a_run_that_was_interrupted_continues_exactly(train: Callable[..., Result], until: int) -> None:
    whole = train("whole")
    assert whole.last_step == BEST + 6
    half = train("parts", until=until)
    assert half.reason == "interrupted"
    rest = train("parts", resume=True)
    ours, theirs = (each.run.load_state()[0] for each in (rest, whole))
    assert torch.equal(ours.vectors["clip_l"], theirs.vectors["clip_l"])
    assert (ours.best.step, ours.best.loss, ours.best.improved_at) == (
        theirs.best.step,
        theirs.best.loss,
        theirs.best.improved_at,
    )
    for table in ("validation_file", "loss_file"):
        assert getattr(rest.run, table).read_bytes() == getattr(whole.run, table).read_bytes()
    assert torch.equal(vectors_of(rest.embedding_file), vectors_of(whole.embedding_file))
    assert (rest.verdict, rest.last_step) == (whole.verdict, whole.last_step)


@pytest.mark.usefixtures("overfits")
def test_an_interrupted_run_keeps_what_it_has_only_if_that_is_the_best(train: Callable[..., Result]) -> None:
    assert train("early", until=5).embedding.step == 5  # measured at step 4, and better since
    assert train("late", until=9).embedding.step == BEST
    assert train("never measured", until=1).embedding.step == 1


@pytest.mark.usefixtures("overfits")
def test_a_run_that_ended_early_can_be_trained_further(train: Callable[..., Result]) -> None:
    first = train()
    more = train(resume=True)
    assert (first.last_step, more.last_step) == (12, 18)
    assert more.embedding.step == first.embedding.step == BEST
    whole = train(resume=True, stop_when_done=False)
    assert (whole.last_step, whole.embedding.step) == (40, 40)
    assert whole.num_images == 7, "as it was started"


def test_a_resumed_run_holds_out_what_it_held_out_before(
    train: Callable[..., Result], caplog: pytest.LogCaptureFixture
) -> None:
    short = train("short", max_steps=8, until=4)
    more = train("short", resume=True)
    assert (short.num_images, more.num_images) == (8, 8)
    train("long", until=4)
    less = train("long", resume=True, max_steps=8)
    assert less.num_images == 7
    assert "not exactly" not in caplog.text


def test_a_run_of_an_earlier_version_goes_on_to_its_last_step(train: Callable[..., Result]) -> None:
    run = train(until=3, stop_when_done=False).run
    settings = run.settings()
    del settings["train"]["stop_when_done"]
    run.save_settings(settings)
    assert not TrainConfig.from_dict(run.options()).stop_when_done


def test_the_loss_is_that_of_the_image_held_out(train: Callable[..., Result], tmp_path: Path) -> None:
    result = train(max_steps=10)
    (name,) = result.run.settings()["held_out"]
    folder = Path(result.run.settings()["images"])
    data = load_dataset(folder, TinyModel(), Frame((16, 16)), Prompter("x-word", ("[name]",)), DatasetOptions())
    (item,) = (each for each in data.items if each.path.name == name.split("/")[1])
    measured = {}
    for step, copy in result.run.copies():
        words = {"x-word": formats.read(copy).vectors}
        measured[step] = validation_loss(TinyModel(), [item], [f"a photo of x-word, {item.caption}"], words)
    rows = dict(result.run.validation_losses())
    assert sorted(rows) == [0, 2, 4, 6, 8, 10][: len(rows)]
    assert len(rows) >= 5
    for step, loss in list(rows.items())[1:]:
        assert loss == pytest.approx(measured[step], rel=1e-5)


def test_memory_that_runs_out_in_a_measurement_does_not_end_a_run(
    train: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    measured, asked = selection.validation_loss, []

    def fails(*given: Any, **named: Any) -> float:
        asked.append(given[6])
        if len(asked) > 2 and given[6] == 1:
            return measured(*given, **named)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(selection, "validation_loss", fails)
    result = train(max_steps=10)
    assert caplog.text.count("The validation loss was not measured at step 0") == 1
    assert "not measured at step 2" not in caplog.text
    assert asked[:4] == [2, 1, 2, 1], "then fewer samples at once"
    assert result.verdict


@pytest.mark.usefixtures("overfits")
def test_the_page_follows_the_best_step(host: Puppet, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int | None] = []
    job = Job()
    host.at = {each: lambda: found.append(job.snapshot().best_step) for each in (1, 8)}
    monkeypatch.setattr("ti_trainer.runs.step_progress.READ_EVERY_S", 0.0)
    config = replace(CONFIG, learning_rate="0.01", max_steps=40, batch_size=1, gradient_accumulation_steps=1)
    job.start(Session(host, "x-word", folder, config))
    now = ended(job)
    assert now.status == "done"
    assert found[0] is None
    assert found[1] == BEST
    assert now.best_step == now.result.embedding.step < now.step == now.result.last_step < 40
    assert now.best_step in dict(now.previews), "which no interval had"
    assert "Best at step 6 of 12" in train_progress.parts_of(Page(host, job), now)["result"][1]()
    assert (host.embeddings_dir / "x-word.preview.png").is_file()
