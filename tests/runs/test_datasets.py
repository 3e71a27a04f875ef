"""Runs on several folders that a file lists: begun, resumed, and never on what the page may not read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from puppet import CONFIG, Puppet, ended, vectors

from ti_trainer.data.image_files import find_images
from ti_trainer.data.preflight import preflight
from ti_trainer.data.prompts import load_plain, load_template
from ti_trainer.data.subsets import Subset, read_subsets, write_subsets
from ti_trainer.errors import ConfigError, DatasetError
from ti_trainer.formats import embeddings_dir
from ti_trainer.hosts.diffusers.host import StandaloneHost
from ti_trainer.runs.builders import prompter_of
from ti_trainer.runs.datasets import about_embedding, datasets_dir, subsets_of
from ti_trainer.runs.job import Job
from ti_trainer.runs.run_folder import Run, changes
from ti_trainer.runs.session import Controls, Session
from ti_trainer.training.trainer import Trainer


@pytest.fixture
def dataset(tmp_path: Path, images: Callable[..., Path]) -> Path:
    """Two folders of the thing, one with masks, and one of its class."""
    masks, masked = tmp_path / "masks", images((16, 16), (24, 16))
    masks.mkdir()
    for number, size in enumerate(((16, 16), (24, 16))):
        mask = Image.new("L", size)
        mask.paste(255, (0, 0, 8, 16))
        mask.save(masks / f"{number}.png")
    subsets = [
        Subset(images((16, 16), (24, 16), (16, 24)), repeats=2),
        Subset(masked, masks=masks, weight=2.0),
        Subset(images((16, 16)), class_tokens="[name] toy", caption_extension=".none", is_reg=True),
    ]
    write_subsets(tmp_path / "set.toml", subsets)
    return tmp_path / "set.toml"


@pytest.fixture
def folder(dataset: Path) -> Path:
    """What the fixture `session` trains on."""
    return dataset


def test_a_run_on_several_folders_says_what_it_was_trained_on(session: Session, dataset: Path) -> None:
    session.check()
    result = session.train()
    assert result.reason == "done"
    assert result.num_images == 6
    settings = result.run.settings()
    assert settings["images"] == str(dataset)
    assert [each.get("num_repeats", 1) for each in settings["dataset"]] == [2, 1, 1]
    assert settings["dataset"][1]["loss_weight"] == 2.0
    assert settings["dataset"][2]["is_reg"] is True
    assert result.embedding.info["num_images"] == 6


def test_it_is_resumed_exactly_and_without_a_warning(session: Session, host: Puppet, dataset: Path, tmp_path: Path) -> None:
    session.train()
    whole = vectors(host)
    other, told, controls = Puppet(tmp_path / "other"), [], Controls()
    other.at[4] = controls.stop.set
    stopped = Session(other, "x-word", dataset, CONFIG).train(controls=controls)
    assert stopped.reason == "interrupted"
    other.at.clear()
    Session(other, "x-word", Path(stopped.run.settings()["images"]), CONFIG, stopped.run, told.append).train()
    assert told == []
    assert torch.equal(vectors(other), whole)


def test_other_repeats_are_told_when_it_is_resumed(session: Session, host: Puppet, dataset: Path) -> None:
    controls = Controls()
    host.at[4] = controls.stop.set
    run = session.train(controls=controls).run
    host.at.clear()
    dataset.write_text(dataset.read_text().replace("num_repeats = 2", "num_repeats = 3"))
    told: list[str] = []
    replace(session, resume=run, warn=told.append).train()
    assert told == ["Changed since the run was started: images or captions. It is resumed, but not exactly."]


def test_what_the_file_says_and_is_not_obeyed_is_told_once(session: Session, dataset: Path) -> None:
    dataset.write_text("[general]\nresolution = 768\n" + dataset.read_text())
    told: list[str] = []
    session = replace(session, warn=told.append)
    session.check()
    session.train()
    assert sum("resolution: Width" in each for each in told) == 1
    assert len(set(told)) == len(told)


def test_a_job_on_it_is_watched_and_measured(session: Session) -> None:
    job = Job()
    job.start(replace(session, config=replace(CONFIG, evaluate_every=5)))
    now = ended(job)
    assert now.status == "done", now.message
    assert [step for step, _ in now.run.validation_losses()] == [0, 5, 10]


def test_a_run_tells_before_its_first_step_what_the_page_tells_of_the_dataset(
    host: Puppet, images: Callable[..., Path]
) -> None:
    embeddings_dir.create(host.embeddings_dir, host.model, "word", "red cat on a mat", 2)
    folder, told = images((16, 16), (16, 16)), list[str]()
    for number in range(2):
        (folder / f"{number}.png").rename(folder / f"IMG_{number}.png")
        (folder / f"{number}.txt").unlink()
    (folder / "a.mp4").touch()
    config = replace(CONFIG, width=24, height=24, do_not_resize=False, template="subject_filewords")
    session = Session(host, "word", folder, config, warn=told.append)

    def callbacks(trainer: Trainer, run: Run) -> list[Any]:
        told.append("the first step")
        return []

    embedding, (template, plain) = embeddings_dir.load(host.embeddings_dir, "word")[0], _lines("subject_filewords")
    prompter = prompter_of(config, "word", template, plain)
    seen = preflight(read_subsets(folder), prompter, config, host.model, embedding.vectors)
    session.train(callbacks)
    before = told[: told.index("the first step")]
    assert [*about_embedding(host.model, embedding), *seen.warnings] == before
    for part in (
        "would use this embedding",
        "a part of the text is left out",
        "1 .mp4 file",
        "smaller than",
        "Only 2",
        "no .txt file",
    ):
        assert any(part in each for each in before), part


def test_a_template_that_leaves_the_word_to_captions_without_it_is_refused_at_once(
    session: Session, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("[filewords]")
    with pytest.raises(ConfigError, match="does not contain x-word"):
        replace(session, config=replace(CONFIG, template=str(tmp_path / "mine.txt"))).check()


def test_buckets_are_trained_on_with_several_sizes(host: Puppet, images: Callable[..., Path]) -> None:
    folder = images((330, 200), (200, 330), (256, 256), (330, 210))
    config = replace(CONFIG, do_not_resize=False, buckets=True, width=256, height=256)
    session = Session(host, "x-word", folder, config)
    session.check()
    assert session.train().num_images == 4
    with pytest.raises(ConfigError, match="64 x 64 px or more") as caught:
        Session(host, "x-word", folder, replace(config, width=0, height=0)).check()  # 16 px
    assert caught.value.option == "buckets"


def test_settings_from_before_there_was_a_prior_loss_weight_are_no_change() -> None:
    now = {"model_hash": "1", "train": CONFIG.to_dict()}
    before = {"model_hash": "1", "train": {k: v for k, v in CONFIG.to_dict().items() if k != "prior_loss_weight"}}
    assert changes(before, now, other_images=False) == []
    before["train"]["prior_loss_weight"] = 0.5
    assert changes(before, now, other_images=False) == ["prior_loss_weight"]


def test_runs_from_before_there_was_prompt_preservation_had_none() -> None:
    before = {"model_hash": "1", "train": {k: v for k, v in CONFIG.to_dict().items() if k != "prompt_preservation"}}
    for share, expected in ((0.0, []), (0.5, ["prompt_preservation"])):
        now = {"model_hash": "1", "train": replace(CONFIG, prompt_preservation=share).to_dict()}
        assert changes(before, now, other_images=False) == expected


def _lines(template: str) -> tuple[list[str], list[str]]:
    return load_template(template), load_plain(template)


def listed(path: Path, **folders: Path) -> Path:
    """A dataset file with these keys."""
    lines = "\n".join(f"{key} = {json.dumps(str(folder))}" for key, folder in folders.items())
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"[[datasets]]\n[[datasets.subsets]]\n{lines}\n")
    return path


@pytest.fixture
def places(tmp_path: Path, images: Callable[..., Path]) -> tuple[Path, Path]:
    """A folder that visitors of the page may read, and one that they may not; both with images."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    images((16, 16)).rename(inside)
    images((16, 16)).rename(outside)
    return inside, outside


@pytest.mark.parametrize(
    "keys",
    [
        {"image_dir": "outside"},
        {"image_dir": "inside", "conditioning_data_dir": "outside"},
        {"image_dir": "inside/../outside"},
        {"image_dir": "link"},
        {"image_dir": "gone"},
    ],
)
def test_no_folder_that_visitors_may_not_read_is_read_for_them(
    places: tuple[Path, Path], tmp_path: Path, keys: dict[str, str]
) -> None:
    inside, _ = places
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "outside")
    host = StandaloneHost(folders=[inside], log_dir=tmp_path / "logs", embeddings_dir=tmp_path / "embeddings")
    found = {key: inside / "link" if name == "link" else tmp_path / name for key, name in keys.items()}
    for place in (inside / "set.toml", datasets_dir(host) / "set.toml"):
        place.parent.mkdir(parents=True, exist_ok=True)
        file = listed(place, **found)
        with pytest.raises(ConfigError, match="not among the folders"):
            subsets_of(host, file)
        session = Session(host, "x-word", file, CONFIG)
        with pytest.raises(ConfigError, match="not among the folders"):
            session.check()
        with pytest.raises(ConfigError, match="not among the folders"):
            session.train()
    assert subsets_of(StandaloneHost(), file)[0].folder == found["image_dir"]  # the computer's own user may


def test_a_file_must_lie_where_visitors_may_read_or_be_one_that_the_page_saved(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    inside, outside = places
    host = StandaloneHost(folders=[inside], log_dir=tmp_path / "logs")
    kept = datasets_dir(host)
    kept.mkdir(parents=True)
    for place in (inside, kept):
        assert subsets_of(host, listed(place / "set.toml", image_dir=inside)) == (Subset(inside),)
    secret = outside / "set.json"
    secret.write_text('"secret"')
    (kept / "way out.json").symlink_to(secret)
    for file in (
        listed(outside / "set.toml", image_dir=inside),
        listed(tmp_path / "logs" / "set.toml", image_dir=inside),
        secret,
        kept / ".." / ".." / "outside" / "set.json",
        kept / "way out.json",
        outside / "nothing.toml",
    ):
        with pytest.raises(ConfigError, match="not among the folders") as caught:
            subsets_of(host, file)
        assert '"secret"' not in str(caught.value)
    with pytest.raises(ConfigError, match="not among the folders"):
        subsets_of(host, kept)  # images do not lie there
    with pytest.raises(DatasetError, match="does not exist"):
        subsets_of(host, inside / "nothing.toml")


def test_a_file_that_changed_after_it_was_checked_is_checked_again(
    host: Puppet, places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, outside = places
    allowed = StandaloneHost(folders=[inside])
    monkeypatch.setattr(host, "check_folder", allowed.check_folder, raising=False)
    session = Session(host, "x-word", listed(inside / "set.toml", image_dir=inside), CONFIG)
    session.check()
    listed(inside / "set.toml", image_dir=outside)
    with pytest.raises(ConfigError, match="not among the folders"):
        session.train()
    assert Run.all(host.log_dir) == []
    assert embeddings_dir.load(host.embeddings_dir, "x-word")[0].step == 0


def test_a_folder_that_leads_to_itself_is_refused_and_no_fault_of_ours(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop, target_is_directory=True)
    for host in (StandaloneHost(), StandaloneHost(folders=[tmp_path])):
        (subset,) = subsets_of(host, loop)
        with pytest.raises((ConfigError, DatasetError)):
            find_images(subset.folder)
