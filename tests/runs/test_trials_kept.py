"""Several trials from files to files: the best is kept, all are told of, and a run goes on with all of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import TinyHost, TinyModel
from PIL import Image
from torch import Tensor

from ti_trainer import formats
from ti_trainer.config.training import TrainConfig
from ti_trainer.data.images import Frame
from ti_trainer.errors import ConfigError
from ti_trainer.formats import embeddings_dir
from ti_trainer.functional.guidance import GuidanceScale
from ti_trainer.model import Vectors
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Controls, Result, Session
from ti_trainer.training.evaluation import validation_loss
from ti_trainer.training.trainer import Event

CONFIG = TrainConfig(
    max_steps=6, trials=3, trial_learning_rates="0.001, 0.5, 0.05", trial_vectors="3; ; 1", width=16, height=16,
    preview_every=3, save_every=3, csv_every=1,
)  # fmt: skip


@pytest.fixture
def session(tmp_path: Path, images: Callable[..., Path]) -> Callable[..., Result]:
    """Trains x-word from files to files; options are TrainConfig's."""
    folder = images((16, 16), (16, 16), (16, 16))

    def train(where: str = "one", until: int = 99, resume: bool = False, model: Any = None, **options: Any) -> Result:
        host = TinyHost(tmp_path / where, model or TinyModel())
        if embeddings_dir.find(host.embeddings_dir, "x-word") is None:
            embeddings_dir.create_pair(host.embeddings_dir, host.model, ("x-word", "red cat", 2), ("blue", 3))
        controls = Controls()

        def stop(event: Event) -> None:
            if event.step >= until:
                controls.stop.set()

        earlier = Run.latest(host.log_dir, "x-word") if resume else None
        return Session(host, "x-word", folder, replace(CONFIG, **options), earlier).train(lambda *_: [stop], controls)

    return train


def table(run: Run) -> list[dict[str, str]]:
    with (run.path / "trials.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def measured(folder: Path, copy: Path, negative: Path | None = None) -> float:
    """The validation loss of a word's file, measured afresh."""
    from ti_trainer.data.loading import load_dataset
    from ti_trainer.data.prompts import Prompter

    model = TinyModel()
    items = load_dataset(folder, model, Frame((16, 16)), Prompter("x-word", ["[name]"])).items
    words = {"x-word": formats.read(copy).vectors}
    said = [f"a photo of x-word, {item.caption}" for item in items]
    if negative is None:
        return validation_loss(model, items, said, words)
    words["x-word-neg"] = formats.read(negative).vectors
    unsaid = [each.replace("x-word", "x-word-neg") for each in said]
    return validation_loss(model, items, said, words, GuidanceScale(3, 3), unsaid)


@pytest.mark.parametrize("negative", [False, True])
def test_the_best_is_kept_and_all_are_told_of(session: Callable[..., Result], negative: bool) -> None:
    result = session(negative=negative)
    run, folder = result.run, Path(result.run.settings()["images"])
    rows = table(run)
    found = {}
    for row in rows:
        copy = run.path / "embeddings" / f"x-word-trial{row['number']}-6.safetensors"
        unwanted = copy.with_name(f"x-word-trial{row['number']}-neg-6.safetensors") if negative else None
        found[row["number"]] = measured(folder, copy, unwanted)
        assert float(row["validation_loss"]) == pytest.approx(found[row["number"]], rel=1e-5)
    best = min(found, key=found.get)
    assert best != "1", "else this shows nothing"
    assert [row["number"] for row in rows if row["kept"] == "yes"] == [best]
    assert [row["learning_rate"] for row in rows] == ["0.001", "0.5", "0.05"]
    assert [row["num_vectors"] for row in rows] == ["3", "2", "1"]
    assert [row["init_text"] for row in rows] == ["red cat"] * 3
    assert len({row["noise"] for row in rows}) == 3
    kept, copy = formats.read(result.embedding_file), run.path / "embeddings" / f"x-word-trial{best}-6.safetensors"
    assert torch.equal(kept.vectors["clip_l"], formats.read(copy).vectors["clip_l"])
    assert (kept.name, kept.step, formats.read(copy).name) == ("x-word", 6, f"x-word-trial{best}-6")
    assert [each.number for each in result.trials if each.kept] == [int(best)]
    if negative:
        beside = formats.read(copy.with_name(f"x-word-trial{best}-neg-6.safetensors"))
        assert torch.equal(formats.read(result.negative_file).vectors["clip_l"], beside.vectors["clip_l"])
    assert [step for step, _ in run.copies()] == [3, 6]
    assert len(run.previews()) == 3


def test_a_run_without_trials_has_no_table(session: Callable[..., Result]) -> None:
    result = session(trials=1, trial_learning_rates="", trial_vectors="")
    assert result.trials == ()
    assert not (result.run.path / "trials.csv").exists()
    assert not list(result.run.path.glob("embeddings/*try*"))
    with (result.run.path / "state.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert json.loads(header["__metadata__"]["state"])["trials"] == []


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The vectors of x-word in every preview."""
    found: list[Tensor] = []

    def note(host: TinyHost, model: TinyModel, drawing: object, words: Mapping[str, Vectors]) -> Image.Image:
        found.append(words["x-word"]["clip_l"])
        return Image.new("RGB", (16, 16))

    monkeypatch.setattr(TinyHost, "generate", note)
    return found


def test_while_it_is_measured_previews_and_copies_are_of_the_best_so_far(
    session: Callable[..., Result], drawn: list[Tensor]
) -> None:
    result = session(evaluate_every=3)
    rows, best = result.run.validation_losses(), next(each for each in result.trials if each.kept)
    assert [step for step, _ in rows] == [0, 3, 6]
    assert rows[-1][1] == pytest.approx(best.validation_loss, abs=1e-6)
    assert best.validation_loss == min(each.validation_loss for each in result.trials)
    folder, at = Path(result.run.settings()["images"]), result.run.path / "embeddings"
    for (step, copy), seen in zip(result.run.copies(), drawn[1:], strict=True):
        best = min(
            (at / f"x-word-trial{number}-{step}.safetensors" for number in (1, 2, 3)),
            key=lambda each: measured(folder, each),
        )
        assert torch.equal(seen, formats.read(best).vectors["clip_l"]), step
        assert torch.equal(seen, formats.read(copy).vectors["clip_l"]), step


def test_the_last_preview_and_copy_are_of_the_one_that_is_kept(session: Callable[..., Result], drawn: list[Tensor]) -> None:
    result = session(evaluate_every=0)
    kept = formats.read(result.embedding_file).vectors["clip_l"]
    assert next(each.number for each in result.trials if each.kept) != 1
    assert torch.equal(drawn[-1], kept)
    assert torch.equal(formats.read(dict(result.run.copies())[6]).vectors["clip_l"], kept)
    assert torch.equal(formats.read(result.run.path / "image_embeddings" / "x-word-6.png").vectors["clip_l"], kept)
    assert result.run.validation_losses() == []
    stopped = session("other", until=3)
    kept = formats.read(stopped.embedding_file).vectors["clip_l"]
    assert torch.equal(formats.read(dict(stopped.run.copies())[3]).vectors["clip_l"], kept)


def test_a_session_that_was_stopped_goes_on_exactly_with_all_its_trials(session: Callable[..., Result]) -> None:
    whole = session("whole", evaluate_every=2)
    half = session("parts", until=3, evaluate_every=2)
    assert (half.reason, half.embedding.step) == ("interrupted", 3)
    assert [each.validation_loss is None for each in half.trials] == [False] * 3
    rest = session("parts", resume=True, evaluate_every=2)
    ours, theirs = rest.run.load_state()[0], whole.run.load_state()[0]
    assert all(torch.equal(each, theirs.vectors[key]) for key, each in ours.vectors.items())
    assert rest.run.loss_file.read_bytes() == whole.run.loss_file.read_bytes()
    assert rest.run.validation_file.read_bytes() == whole.run.validation_file.read_bytes()
    assert rest.trials == whole.trials
    assert formats.read(rest.embedding_file).info["init_text"] == "red cat"


def test_how_trials_begin_is_settled_at_the_beginning(session: Callable[..., Result]) -> None:
    session(until=3)
    for changed, name in (
        ({"trials": 4}, "trials"),
        ({"trial_vectors": "1"}, "trial_vectors"),
        ({"trial_init_texts": "a"},) * 2,
    ):
        option = name if isinstance(name, str) else "trial_init_texts"
        with pytest.raises(ConfigError, match="cannot change") as caught:
            session(resume=True, **changed)
        assert caught.value.option == option
    assert session(resume=True, trial_learning_rates="0.002").reason == "done"
    for changed, option in (
        ({"trial_vectors": "1; 7"}, "trial_vectors"),
        ({"trial_init_texts": "; cat"}, "trial_init_texts"),
    ):
        with pytest.raises(ConfigError, match="has been trained for 6 steps already") as caught:
            session(**{"max_steps": 9, "trial_vectors": "", **changed})
        assert caught.value.option == option
    assert session(max_steps=9, trial_vectors="").embedding.step == 9


def test_one_that_diverges_does_not_end_the_session(
    session: Callable[..., Result], caplog: pytest.LogCaptureFixture
) -> None:
    result = session(max_steps=12, trial_learning_rates="1e39, 0.01, 0.02")
    assert result.reason == "done"
    assert "Trial 1 (learning rate 1e39) was stopped" in caplog.text
    first, *others = table(result.run)
    assert (first["stopped"], first["kept"], first["step"], first["validation_loss"]) == ("yes", "no", "0", "")
    assert {each["stopped"] for each in others} == {"no"}
    assert result.embedding.step == 12
    assert (result.run.path / "embeddings" / "x-word-trial1-0.safetensors").is_file()


def test_memory_is_planned_for_all_of_them(session: Callable[..., Result]) -> None:
    class Asked(TinyModel):
        asked: list[int] = []  # noqa: RUF012

        def fit_memory(self, places: int, decoded: int = 0, mode: str = "auto") -> str:
            self.asked.append(places)
            return ""

    session("a", model=Asked(), batch_size=2)
    session("b", model=Asked(), batch_size=2, trials=1, trial_learning_rates="", trial_vectors="")
    assert Asked.asked == [3 * Asked.asked[1], Asked.asked[1]]


def test_what_the_webui_left_of_its_optimizer_is_every_trys(session: Callable[..., Result], tmp_path: Path) -> None:
    lists = {"trial_learning_rates": "", "trial_vectors": ""}
    for where, trials in (("one", 1), ("two", 2)):
        host = TinyHost(tmp_path / where)
        file = embeddings_dir.create(host.embeddings_dir, host.model, "x-word", "red cat", 2)
        file.rename(file.with_suffix(".pt"))
        begun = session(where, trials=trials, max_steps=4, **lists)
        assert begun.embedding_file.suffix == ".pt"
    states = {}
    for where, trials in (("one", 1), ("two", 2)):
        states[where] = session(where, trials=trials, max_steps=5, **lists).run.load_state()[0]
    first, second = states["two"].optimizers
    (only,) = states["one"].optimizers
    assert first["state"][0]["step"] == second["state"][0]["step"] == only["state"][0]["step"] == 5
