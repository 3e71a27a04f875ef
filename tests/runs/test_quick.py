"""Quick training: from a folder of images to a trained embedding, and what each stage says about it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import TinyHost
from PIL import Image

pytest.importorskip("imagehash")

from ti_trainer.captioning.captioner import Captioner, HostCaptioner
from ti_trainer.config.preprocessing import PreprocessConfig
from ti_trainer.config.training import TrainConfig
from ti_trainer.data.listing import LEFT_OUT
from ti_trainer.errors import BusyError, ConfigError, DatasetError, StoppedError
from ti_trainer.formats import embeddings_dir
from ti_trainer.preprocess import job as preprocess
from ti_trainer.runs import queue as queue_module
from ti_trainer.runs import quick as quick_module
from ti_trainer.runs.datasets import subsets_of
from ti_trainer.runs.job import Job
from ti_trainer.runs.queue import Queue
from ti_trainer.runs.quick import KINDS, QuickTraining, what_of
from ti_trainer.runs.quick_job import QuickJob, QuickSnapshot
from ti_trainer.runs.quick_stages import Stage
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session
from ti_trainer.runs.suggestions import free_name, suggested_text

FEW = {"max_steps": 6, "learning_rate": "0.01", "preview_every": 6, "save_every": 0}
ENDLESS = {**FEW, "max_steps": 1_000_000, "preview_every": 0}
LIMIT_S = 60


@pytest.fixture
def host(tmp_path: Path) -> TinyHost:
    return TinyHost(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four images that differ, one of them twice, a blank one, one that is damaged, and a file that is no image."""
    folder = tmp_path / "source"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(4):
        coarse = Image.fromarray(random.integers(0, 256, (6, 9, 3), np.uint8))
        coarse.resize((96, 72), Image.Resampling.NEAREST).save(folder / f"{number}.png")
    (folder / "twice.png").write_bytes((folder / "0.png").read_bytes())
    Image.new("RGB", (96, 72), "white").save(folder / "blank.png")
    (folder / "damaged.png").write_bytes(b"no image")
    (folder / "notes.pdf").write_bytes(b"%PDF")
    return folder


def ended(quick: QuickJob) -> QuickSnapshot:
    quick.wait(LIMIT_S)
    now = quick.snapshot()
    assert not now.active
    return now


def test_one_call_leads_from_a_folder_to_a_trained_embedding(host: TinyHost, source: Path) -> None:
    quick, job, preprocessing = QuickJob(), Job(), preprocess.Job()
    before = {path: path.read_bytes() for path in source.iterdir()}
    assert [each.status for each in quick.snapshot().stages] == ["waiting"] * 5
    quick.start(QuickTraining(host, "my-toy", source, "object", "red toy", FEW), job, preprocessing)
    with pytest.raises(BusyError, match="'my-toy'"):
        quick.start(QuickTraining(host, "other", source, options=FEW), job, preprocessing)
    images, dataset, embedding, training, result = ended(quick).stages
    assert [each.status for each in (images, dataset, embedding, training, result)] == ["done"] * 5
    assert images.text.startswith("7 images; 3 left out: ")
    for said in ("blank.png (blank: a single color)", "damaged.png (cannot be read", "twice.png (the same file as 0.png)"):
        assert said in images.text
    folder = host.log_dir / "datasets" / "my-toy"
    assert f"4 images at 64 x 64 px, cropped around the subject, without captions: {folder.resolve()}" == dataset.text
    assert any("notes.pdf" in each or ".pdf" in each for each in dataset.warnings), dataset.warnings
    assert [path.name for path in sorted(folder.glob("*.png"))] == ["0.png", "1.png", "2.png", "3.png"]
    assert {path.name for path in (folder / LEFT_OUT).glob("*.png")} == {"blank.png", "twice.png"}
    assert embedding.text == "my-toy: 2 vectors, starting from 'red toy'."
    assert training.text == "6 steps."
    made, path = embeddings_dir.load(host.embeddings_dir, "my-toy")
    assert (made.step, made.num_vectors) == (6, 2)
    assert result.text == f"Write my-toy in a prompt to use it. The embedding is {path.resolve()}."
    (run,) = Run.all(host.log_dir)
    assert run.options()["template"] == "subject"  # without captions
    assert Path(run.settings()["images"]) == folder.resolve()
    assert {path: path.read_bytes() for path in source.iterdir()} == before

    # A later run of the same embedding is not this one.
    job.start(Session(host, "my-toy", folder, TrainConfig(max_steps=12, template="subject")))
    job.wait(LIMIT_S)
    assert quick.snapshot().stages[3] == training


@pytest.mark.parametrize("kind", KINDS)
def test_the_rate_fits_the_model_and_the_rest_of_prompts_is_preserved(host: TinyHost, source: Path, kind: str) -> None:
    config = QuickTraining(host, "new", source, kind, options=FEW).config()
    assert (config.optimizer, config.learning_rate) == ("adamw", "auto")
    assert config.phrase_share == 0.3


def test_names_that_are_taken_are_refused_and_datasets_of_other_images_kept_apart(host: TinyHost, source: Path) -> None:
    first = QuickTraining(host, "x-word", source, options=FEW)
    embeddings_dir.create(host.embeddings_dir, host.model, "x-word", "cat", 1)
    first.check()  # created, but never trained
    trained, path = embeddings_dir.load(host.embeddings_dir, "x-word")
    embeddings_dir.save(replace(trained, step=5), path)
    with pytest.raises(ConfigError, match="choose another name, such as x-word-2, or replace it") as refused:
        first.check()
    assert refused.value.option == "overwrite"
    assert free_name(host, "x-word") == "x-word-2"
    QuickTraining(host, "x-word", source, options=FEW, overwrite=True).check()
    for name, option in (("", "name"), ("../x", "name"), ("a/b", "name"), ("CON", "name")):
        with pytest.raises(ConfigError) as refused:
            QuickTraining(host, name, source).check()
        assert refused.value.option == option
    with pytest.raises(ConfigError, match="expected one of person, object, style"):
        QuickTraining(host, "new", source, "animal").check()
    with pytest.raises(DatasetError, match="does not exist"):
        QuickTraining(host, "new", source / "nowhere").check()
    (source / "forbidden").mkdir()
    with pytest.raises(ConfigError, match="not for the page"):
        QuickTraining(host, "new", source / "forbidden").check()

    work = QuickTraining(host, "new", source, options=FEW)
    assert work.dataset == host.log_dir.resolve() / "datasets" / "new"
    stages: list[Stage] = []
    session = work.prepare(lambda prepared: prepared.run(), stages.append)
    replaced = "The embedding of this name, which had not been trained, was replaced."
    assert replaced not in stages[-1].warnings
    work.prepare(lambda prepared: prepared.run(), stages.append)
    assert replaced not in stages[-1].warnings, "it was the same"
    replace(work, init_text="dog").prepare(lambda prepared: prepared.run(), stages.append)
    assert replaced in stages[-1].warnings
    assert QuickTraining(host, "new", source).dataset == session.images  # the same again
    other = source.with_name("other")
    source.rename(other)
    assert QuickTraining(host, "new", other).dataset.name == "new-2"
    forbidding = TinyHost(host.folder)
    forbidding.check_folder = lambda folder: pytest.fail("what we prepared is always allowed")
    assert len(subsets_of(forbidding, session.images)) == 1


def test_captions_are_taken_over_or_written_and_a_captioner_that_fails_is_no_end(host: TinyHost, source: Path) -> None:
    @contextmanager
    def opened(config: PreprocessConfig) -> Iterator[Captioner]:
        yield lambda image: "a toy on a table"

    @contextmanager
    def broken(config: PreprocessConfig) -> Iterator[Captioner]:
        message = "its model is damaged"
        raise ConfigError(message)
        yield

    def prepared(name: str) -> tuple[str, Stage]:
        stages: list[Stage] = []
        work = QuickTraining(host, name, source, "style", options=FEW)
        session = work.prepare(lambda each: each.run(), stages.append)
        assert session.config.buckets
        return session.config.template, next(each for each in stages if each.name == "dataset" and each.status == "done")

    host.captioners = {"fails": HostCaptioner("", broken, lambda: True), "absent": HostCaptioner("", opened)}
    template, stage = prepared("failing")
    assert template == "style"
    assert "No captions were written: its model is damaged" in stage.warnings
    host.captioners = {"works": HostCaptioner("", opened, lambda: True)}
    template, stage = prepared("captioned")
    assert template == "style_filewords"
    assert "each with its own aspect ratio, with captions" in stage.text
    assert {path.read_text() for path in (host.log_dir / "datasets" / "captioned").glob("*.txt")} == {"a toy on a table"}
    for path in source.glob("*.png"):
        path.with_suffix(".txt").write_text("mine")
    assert QuickTraining(host, "mine", source).preprocessing().captioning is None
    (source / "1.txt").unlink()
    host.captioners = {}
    template, stage = prepared("some")
    assert template == "style"
    assert any("only 3 of 4 images have one" in each for each in stage.warnings)


def test_few_images_have_fewer_steps_and_more_prompt_preservation(host: TinyHost, source: Path) -> None:
    for path in sorted(source.iterdir())[1:]:
        path.unlink()
    stages: list[Stage] = []
    options = TrainConfig(**{**FEW, "max_steps": 151}).to_dict()  # all of them, as the command line gives
    session = QuickTraining(host, "x", source, options=options).prepare(lambda each: each.run(), stages.append)
    assert session.config.max_steps == 150
    said = "Training takes 150 steps instead of 151: with 1 image, more steps overfit."
    warnings = next(each for each in stages if each.name == "dataset" and each.status == "done").warnings
    assert said in warnings
    assert session.config.prompt_preservation == 0.5
    assert "Prompt preservation is 0.5 instead of 0.3: with 1 image, prompts are soon ignored." in warnings
    chosen = {**FEW, "prompt_preservation": 0.2}
    assert (
        QuickTraining(host, "y", source, options=chosen)
        .prepare(lambda each: each.run(), stages.append)
        .config.prompt_preservation
        == 0.2
    )


def test_it_stops_in_each_stage_and_says_what_failed(host: TinyHost, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_module, "STEPS_PER_IMAGE", ENDLESS["max_steps"])
    quick, job, preprocessing = QuickJob(), Job(), preprocess.Job()
    with pytest.raises(StoppedError, match="was stopped"):
        QuickTraining(host, "x", source, options=FEW).prepare(lambda each: each.run(), lambda stage: None, lambda: True)
    assert not list(host.embeddings_dir.glob("*"))

    quick.start(QuickTraining(host, "stopped", source, options=ENDLESS), job, preprocessing)
    end = time.monotonic() + LIMIT_S
    while not job.snapshot().step:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert quick.snapshot().stages[3].text.startswith("Step ")
    with pytest.raises(BusyError, match="'stopped' is being trained"):
        quick.start(QuickTraining(host, "other", source), job, preprocessing)
    job.pause()
    assert ended(quick).stages[3].text.startswith("Paused at step ")
    job.resume()
    assert quick.snapshot().stages[3].status == "running"
    quick.stop()
    now = ended(quick)
    assert (now.stages[3].status, now.stages[4].status) == ("stopped", "done")
    assert now.stages[3].text.startswith("Stopped at step ")

    for path in source.glob("?.png"):
        path.write_bytes(b"damaged")
    (source / "twice.png").unlink()
    quick.start(QuickTraining(host, "unusable", source, options=FEW), job, preprocessing)
    failed = ended(quick).stages[0]
    assert (failed.name, failed.status) == ("images", "failed")
    assert failed.text.startswith("None of the 6 images can be used")
    assert "blank.png (blank: a single color)" in failed.text or "and 1 more" in failed.text
    assert quick.snapshot().stages[1].status == "waiting"
    assert not list(host.embeddings_dir.glob("unusable*"))

    monkeypatch.setattr(QuickTraining, "_examined", lambda *given: 1 / 0)
    quick.start(QuickTraining(host, "bug", source, options=FEW), job, preprocessing)
    assert ended(quick).stages[0].text.startswith("Unexpected ZeroDivisionError")


def test_quick_trainings_are_queued_and_one_that_fails_does_not_stop_the_next(
    host: TinyHost, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_module, "POLL_S", 0.01)

    def attached() -> tuple[Queue, QuickJob]:
        queue, quick = Queue(), QuickJob()
        queue.attach(host, Job(), quick, preprocess.Job())
        return queue, quick

    def over(queue: Queue) -> None:
        end = time.monotonic() + LIMIT_S
        while queue.snapshot().going or queue._thread is not None:
            assert time.monotonic() < end
            time.sleep(0.01)

    queue, _ = attached()
    gone = source.with_name("gone")
    gone.mkdir()
    (gone / "0.png").write_bytes((source / "0.png").read_bytes())
    for name, images in (("gone", gone), ("my-toy", source)):
        queue.add(QuickTraining(host, name, images, "object", "red toy", FEW))
    with pytest.raises(ConfigError, match=r"Number 2 in the queue creates an embedding 'my-toy'"):
        queue.add(QuickTraining(host, "My-Toy", gone, "object", "red toy", FEW))
    assert not list(host.embeddings_dir.glob("*")), "everything happens when its turn comes"
    (gone / "0.png").unlink()

    queue, quick = attached()  # after a restart
    queue.start()
    over(queue)
    (failed,) = queue.snapshot().entries
    assert (failed.name, failed.state) == ("gone", "failed")
    assert str(gone) in failed.message
    assert [each.status for each in quick.snapshot().stages] == ["done"] * 5, "the page shows its stages"
    assert embeddings_dir.load(host.embeddings_dir, "my-toy")[0].step == 6

    for path in source.iterdir():
        (gone / path.name).write_bytes(path.read_bytes())
    examined = QuickTraining._examined
    monkeypatch.setattr(QuickTraining, "_examined", lambda *given: quick.stop() or examined(*given))
    queue.file.try_again(failed.id)
    queue.start()
    over(queue)
    now = queue.snapshot()
    assert ([each.state for each in now.entries], now.held, now.held_by) == (["waiting"], "stopped", "gone")
    monkeypatch.setattr(QuickTraining, "_examined", examined)
    queue.start()
    over(queue)
    assert queue.snapshot().entries == ()
    queue.add(QuickTraining(host, "my-toy", source, options=FEW, overwrite=True))
    queue.file.change(lambda entries: [replace(each, overwrite=False) for each in entries])
    queue.start()
    over(queue)
    (exists,) = queue.snapshot().entries
    assert (exists.option, exists.state) == ("overwrite", "failed")
    queue.file.try_again(exists.id, overwrite=True)
    queue.start()
    over(queue)
    assert queue.snapshot().entries == ()
    queue.add(QuickTraining(host, "later", source, options=FEW))
    queue.file.change(lambda entries: [replace(each, quick={"future": 1}) for each in entries])
    queue.start()
    over(queue)
    assert "future" in queue.snapshot().entries[0].message


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Person", ("person", "")),
        ("style", ("style", "")),
        ("old teapot", ("object", "old teapot")),
        (" watercolor style", ("style", "watercolor style")),
    ],
)
def test_an_answer_to_what_it_is_becomes_a_kind_and_an_init_text(answer: str, expected: tuple[str, str]) -> None:
    assert what_of(answer) == expected


def test_the_init_text_is_suggested_from_what_most_captions_say() -> None:
    assert suggested_text(["a photo of a red dog", "a dog, on grass", "there is a cat"]) == "dog"
    assert suggested_text(["a photo of it", "on sand", "at night"]) == ""
    assert suggested_text(["one dog"]) == suggested_text([]) == ""
