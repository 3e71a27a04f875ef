"""An embedding and a run are made of prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import TinyHost
from loras import pair, save_kohya

from ti_trainer import formats
from ti_trainer.config.training import TrainConfig
from ti_trainer.errors import ConfigError, StoppedError
from ti_trainer.files import short_hash
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs.comparison import findings
from ti_trainer.runs.controls import Controls
from ti_trainer.runs.distill import Distillation
from ti_trainer.runs.job import Job
from ti_trainer.runs.retrain import reset
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Result
from ti_trainer.runs.teacher_lora import lora_file, lora_names

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
        (Distillation("x", "red", "blue", negative_prompt="ugly"), {}, "teacher_negative_prompt"),
        (Distillation("x", "red", for_negative_prompt=True, negative_prompt="ugly"), {}, "teacher_negative_prompt"),
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
    assert Distillation("x", "(red:1.2) BREAK a cat").start(host.model)[0] == "red cat"
    assert Distillation("x", "red cat").start(host.model)[1] == 1
    assert Distillation("x", "red", "blue").start(host.model)[1] == 2
    assert Distillation("x", " ".join("abcdefghijklmnopqrstuvwxyz" * 3)).start(host.model)[1] == 16


@pytest.mark.parametrize(("prompt", "vectors"), [("red", None), ("a red cat", 3)])
def test_vectors_that_would_be_the_prompt_itself_are_refused(host: TinyHost, prompt: str, vectors: int | None) -> None:
    with pytest.raises(ConfigError, match="would be the prompt itself") as caught:
        Distillation("x", prompt).start(host.model, vectors)
    assert caught.value.option == "num_vectors"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return save_kohya(tmp_path / "style.safetensors", {"lora_unet_x": pair((6, 4), 1)})


def test_an_embedding_that_learns_from_a_lora_has_defaults_without_a_prompt(host: TinyHost) -> None:
    assert Distillation("x", "", lora="a").start(host.model) == ("*", 8)
    assert Distillation("x", "in the xyz style", lora="a").start(host.model) == ("xyz style", 8)
    assert Distillation("x", "xyz", lora="a").start(host.model, 3) == ("xyz", 3)
    config = Distillation("x", "", lora="a", lora_weight=0.5).config({})
    assert (config.max_steps, str(config.learning_rate)) == (450, "0.005"), "nothing is fitted to attention before"
    assert Distillation("x", "red", "blue").config({}).max_steps == 450
    assert Distillation("x", "a red star").config({"optimizer": "sphere"}).max_steps == 450
    assert (config.teacher_prompt, config.teacher_lora, config.teacher_lora_weight) == ("", "a", 0.5)


def test_images_are_generated_anew_for_another_lora(host: TinyHost, lora: Path, tmp_path: Path) -> None:
    def generated(**options: object) -> Path:
        wanted = Distillation("x", "", **{"lora": str(lora), **options})
        found = wanted.session(host, wanted.config({})).generated
        assert found.prompts == ("",)
        return found.folder

    other = save_kohya(tmp_path / "other.safetensors", {"lora_unet_x": pair((6, 4), 2)})
    assert generated() == generated()
    assert len({generated(), generated(lora_weight=0.5), generated(lora=str(other))}) == 3


def test_a_run_with_a_lora_is_compared_and_resumed(host: TinyHost, lora: Path) -> None:
    wanted = Distillation("x-style", "", lora=str(lora))
    config, said, warnings = wanted.config({"max_steps": 3, "compile": "on"}), [], []
    wanted.create(host, config, None, overwrite=False, warn=lambda text: None)
    run = wanted.session(host, config, say=said.append).train().run
    assert "style fits." in said
    assert any("would leave out the LoRA" in each for each in said)
    assert run.settings()["teacher_lora_hash"] == short_hash(lora)
    assert "the LoRA" in findings(run)[0]
    longer = wanted.config({"max_steps": 5, "compile": "on"})
    session = replace(wanted.session(host, longer), resume=run, warn=warnings.append)
    assert session.train().embedding.step == 5
    assert not [each for each in warnings if "Changed since" in each]
    save_kohya(lora, {"lora_unet_x": pair((6, 4), 3)})
    replace(session, config=wanted.config({"max_steps": 7, "compile": "on", "learning_rate": "0.001"})).train()
    assert any("Changed since the run was started: LoRA." in each for each in warnings)


def test_a_lora_is_found_by_its_name_and_visitors_give_no_paths(host: TinyHost, lora: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Lora" / "styles"
    folder.mkdir(parents=True)
    path = save_kohya(folder / "ink v1.5.safetensors", {"lora_unet_x": pair((6, 4), 1)})
    host.lora_dirs = (tmp_path / "Lora",)
    assert lora_names(host) == ["ink v1.5"]
    for is_public in (False, True):
        host.is_public = is_public
        for text in ("ink v1.5", "ink v1.5.safetensors"):
            assert lora_file(host, TrainConfig(teacher_lora=text)) == path
    for text in (str(lora), "/etc/passwd", "../style", "style", str(path)):
        with pytest.raises(ConfigError, match="expected the name of a LoRA") as caught:
            lora_file(host, TrainConfig(teacher_lora=text))
        assert caught.value.option == "teacher_lora"
    host.is_public = False
    assert lora_file(host, TrainConfig(teacher_lora=f'"{lora}"')) == lora
    for text, found in ((str(tmp_path), "is a folder"), ("nowhere", "does not exist")):
        with pytest.raises(ConfigError, match=found):
            lora_file(host, TrainConfig(teacher_lora=text))


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


PAIR = Distillation("x-look", "a big red cat", contexts=("a [name] dog", "[name]"), negative_prompt="ugly, grey, dull, dark")


def trained_pair(host: TinyHost, images: Path | None = None, resume: Run | None = None, **options: object) -> Result:
    config = PAIR.config({"max_steps": 8, "lr_scheduler": "constant", "save_every": 4, "preview_every": 0, **options})
    if resume is None:
        PAIR.create(host, config, None, overwrite=False, warn=lambda text: None)
    return replace(PAIR.session(host, config, images), resume=resume).train()


def test_a_pair_starts_from_its_own_prompts_and_images_show_both(host: TinyHost) -> None:
    generated = PAIR.session(host, PAIR.config({})).generated
    expected = ["a big red cat", "ugly, grey, dull, dark"]
    assert list(generated.prompts) == [f"a {each} dog" for each in expected] + expected
    assert generated.count == 2
    assert PAIR.start(host.model, 3) == ("big red cat", 3)
    text, count = PAIR.negative_start(host.model)
    assert (text, count) == Distillation("x", PAIR.negative_prompt).start(host.model)
    with pytest.raises(ConfigError, match="a single token") as caught:
        replace(PAIR, negative_prompt="ugly").negative_start(host.model)
    assert caught.value.option == "teacher_negative_prompt"
    for name in PAIR.names:
        assert embeddings_dir.find(host.embeddings_dir, name) is None


@pytest.mark.parametrize("trials", [1, 2])
def test_a_pair_learns_in_one_run_that_is_resumed_exactly(images: Callable[..., Path], tmp_path: Path, trials: int) -> None:
    folder, whole, parts = images((16, 16), (16, 16)), TinyHost(tmp_path / "whole"), TinyHost(tmp_path / "parts")
    result = trained_pair(whole, folder, trials=trials)
    half = trained_pair(parts, folder, trials=trials, max_steps=4)
    rest = trained_pair(parts, folder, half.run, trials=trials)
    assert result.negative_file.stem == "x-look-neg"
    for name in PAIR.names:
        ours, theirs = (embeddings_dir.load(each.embeddings_dir, name)[0] for each in (whole, parts))
        start = formats.read(dict(rest.run.copies())[4].with_name(f"{name}-4.safetensors"))
        assert torch.equal(ours.vectors["clip_l"], theirs.vectors["clip_l"])
        assert (ours.vectors["clip_l"] - start.vectors["clip_l"]).abs().max() > 0.002
        assert ours.info["learned_from"] == "a prompt"
    assert {"gap_closed", "negative_gap_closed", "both_effect"} <= rest.run.measured().keys()
    assert rest.run.negative_of(dict(rest.run.copies())[8]) is not None


def test_a_pair_is_measured_while_it_trains_and_starts_over_together(host: TinyHost) -> None:
    result = trained_pair(host, max_steps=101, batch_size=8, save_every=0)
    assert result.verdict
    assert result.run.validation_losses()
    before = embeddings_dir.load(host.embeddings_dir, "x-look-neg")[0]
    copies = reset(host, "x-look", negative=PAIR.config({}).trains_negative)
    assert len(copies) == 2
    after = embeddings_dir.load(host.embeddings_dir, "x-look-neg")[0]
    assert (after.step, after.num_vectors) == (0, before.num_vectors)
