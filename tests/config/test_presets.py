"""Presets: those that ship are right, and those of a user come back as they were saved."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from ti_trainer.config import presets
from ti_trainer.config.training import TrainConfig
from ti_trainer.data.prompts import NAME, find_template, load_template
from ti_trainer.errors import ConfigError

MINE = replace(TrainConfig(), max_steps=77, learning_rate="0.01:5, 0.002", template="größe", tag_dropout=0.25)


@pytest.mark.parametrize("name", presets.BUILT_IN)
def test_what_ships_can_be_trained_with(name: str, tmp_path: Path) -> None:
    preset = presets.load(tmp_path, name)
    config = TrainConfig.from_dict(preset.values)
    assert load_template(config.template)
    assert NAME in config.preview_prompt
    assert preset.about.endswith(".")


def test_a_preset_comes_back_as_what_differs_from_the_defaults(tmp_path: Path) -> None:
    folder = tmp_path / "new folder"
    assert presets.saved(folder) == []
    path = presets.save(folder, "für mich", MINE)
    presets.save(folder, "another", TrainConfig())
    assert presets.saved(folder) == ["another", "für mich"]
    values = presets.load(folder, "für mich").values
    assert values == {"max_steps": 77, "learning_rate": "0.01:5, 0.002", "template": "größe", "tag_dropout": 0.25}
    assert TrainConfig.from_dict(values) == MINE
    assert presets.load(folder, "another").values == {}
    assert "größe" in path.read_text(encoding="utf-8")


def test_a_preset_can_be_saved_again(tmp_path: Path) -> None:
    for config in (TrainConfig(), MINE):
        presets.save(tmp_path, "mine", config)
    assert TrainConfig.from_dict(presets.load(tmp_path, "mine").values) == MINE


def test_what_is_built_in_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'style' is built in: choose another name"):
        presets.save(tmp_path, "style", TrainConfig())
    assert presets.saved(tmp_path) == []


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", ".hidden", "a\\b", "CON", "x\0"])
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "presets"
    folder.mkdir()
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ConfigError):
        presets.save(folder, name, TrainConfig())
    with pytest.raises(ConfigError, match=r"There is no preset .*the presets are: person, style, object, DreamArtist "):
        presets.load(folder, name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["presets", "x.json"]


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"\xff\xfe", b"[]", b"3", b"null", b'"text"', b'{"max_steps": "many"}', b'{"colour": "red"}'),
        *(b"[" * 100_000, b" " * 2_000_000 + b"{}"),
    ],
)
def test_a_damaged_preset_is_refused_by_its_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"preset .*mine\.json cannot be read"):
        presets.load(tmp_path, "mine")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_what_is_no_file_is_no_preset_and_no_template(tmp_path: Path) -> None:
    for ending in ("json", "txt"):
        os.mkfifo(tmp_path / f"pipe.{ending}")
        (tmp_path / f"loop.{ending}").symlink_to(tmp_path / f"loop.{ending}")
        (tmp_path / f"folder.{ending}").mkdir()
    assert presets.saved(tmp_path) == []
    for name in ("pipe", "loop", "folder"):
        assert find_template(name, [tmp_path]) is None
        with pytest.raises(ConfigError, match="There is no"):
            presets.load(tmp_path, name)
        with pytest.raises(ConfigError, match="There is no"):
            load_template(str(tmp_path / f"{name}.txt"))
