"""An embedding and a run are made of prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import TinyHost

from ti_trainer.errors import ConfigError, StoppedError
from ti_trainer.runs.controls import Controls
from ti_trainer.runs.distill import Distillation
from ti_trainer.runs.job import Job

CONTEXTS = ("a photo of a [name] cat", "a [name] dog", "[name]")


@pytest.fixture
def host(tmp_path: Path) -> TinyHost:
    return TinyHost(tmp_path)


@pytest.mark.parametrize(
    ("wanted", "options", "field"),
    [
        (Distillation("x", " "), {}, "teacher_prompt"),
        (Distillation("x", "red", contexts=("a cat",)), {}, "contexts"),
        (Distillation("x", "red", for_negative_prompt=True), {}, "preview_prompt"),
        (Distillation("x", "red"), {"max_steps": -1}, "max_steps"),
    ],
)
def test_what_is_missing_is_named(wanted: Distillation, options: dict, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        wanted.config(options)
    assert caught.value.option == field


def test_images_are_generated_of_each_side_of_a_slider_in_each_context(host: TinyHost) -> None:
    wanted = Distillation("x-size", "big", "small", CONTEXTS)
    generated = wanted.session(host, wanted.config({})).generated
    expected = [line.replace("[name]", each) for line in CONTEXTS for each in ("small", "big")]
    assert list(generated.prompts) == expected
    assert generated.count == 1


def test_no_more_images_than_needed_are_generated(host: TinyHost) -> None:
    assert Distillation("x", "red").session(host, Distillation("x", "red").config({})).generated.count == 4
    many = Distillation("x", "red", "blue", tuple(f"[name] {number}" for number in range(30)))
    generated = many.session(host, many.config({})).generated
    assert 6 <= len(generated.prompts) <= 8
    assert {each.split()[0] for each in generated.prompts} == {"red", "blue"}


def test_vectors_follow_the_longer_prompt(host: TinyHost) -> None:
    start = Distillation("x", "a big red cat", "one two three four five six seven").start(host.model)
    assert start == ("big red cat", 4)
    assert Distillation("x", "red cat").start(host.model)[1] == 1
    assert Distillation("x", "red", "blue").start(host.model)[1] == 2
    assert Distillation("x", " ".join("abcdefghijklmnopqrstuvwxyz" * 3)).start(host.model)[1] == 16


@pytest.mark.parametrize(("prompt", "vectors"), [("red", None), ("a red cat", 3)])
def test_vectors_that_would_be_the_prompt_itself_are_refused(host: TinyHost, prompt: str, vectors: int | None) -> None:
    with pytest.raises(ConfigError, match="would be the prompt itself") as caught:
        Distillation("x", prompt).start(host.model, vectors)
    assert caught.value.option == "num_vectors"


def test_a_stop_among_the_generated_images_leaves_no_run(host: TinyHost) -> None:
    wanted, seen = Distillation("x-scene", "a red cat"), []
    config = wanted.config({})
    wanted.create(host, config, None, overwrite=False, warn=lambda text: None)
    controls = Controls()

    def generating(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 2:
            controls.stop.set()

    with pytest.raises(StoppedError):
        wanted.session(host, config).train(controls=controls, generating=generating)
    assert seen == [(0, 4), (1, 4), (2, 4)]
    assert not list(host.log_dir.rglob("settings.json"))
    job = Job()
    job.start(wanted.session(host, wanted.config({"max_steps": 3})))
    job.wait(60)
    assert (job.snapshot().status, job.snapshot().generated) == ("done", (2, 2)), "only those that were missing"


def test_images_that_were_generated_may_be_read_where_others_may_not(tmp_path: Path) -> None:
    class Guarded(TinyHost):
        def check_folder(self, folder: Path) -> None:
            raise ConfigError(f"{folder} is not for visitors")

    host = Guarded(tmp_path)
    wanted = Distillation("x-scene", "a red cat")
    config = wanted.config({"max_steps": 3})
    wanted.create(host, config, None, overwrite=False, warn=lambda text: None)
    assert wanted.session(host, config).train().reason == "done"
