"""What a training reads and writes: files keep their format, names may be any language's, and what is odd is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from ti_trainer import formats
from ti_trainer.formats import webui_optimizer
from ti_trainer.runs.run_folder import Run
from ti_trainer.tiny_model.making import scenes
from ti_trainer.training.trainer import TrainState

Train = Cli = Callable[..., "object"]


def updates(path: Path) -> int:
    """Of AdamW, as the .optim beside the file counts them."""
    return int(webui_optimizer.read_optimizer(path, formats.read(path))["state"][0]["step"])


def test_a_pt_stays_one_and_goes_on_with_its_optimizer(train: Train, cli: Cli, word: Path, tmp_path: Path) -> None:
    pt = word.with_suffix(".pt")
    assert cli("convert", word, pt).code == 0
    word.unlink()
    assert train("--max-steps", 4).code == 0
    assert not word.exists()
    assert (formats.read(pt).step, updates(pt)) == (4, 4)
    kept = {path: path.read_bytes() for path in (pt, pt.with_name("thing.pt.optim"))}

    assert train("--max-steps", 7).code == 0
    assert (formats.read(pt).step, updates(pt)) == (7, 7)
    with_moments = formats.read(pt).vectors["clip_l"]
    assert len(list(tmp_path.glob("textual_inversion/*/*"))) == 2, "without --resume it is a run of its own"

    for path, content in kept.items():
        path.write_bytes(content)
    pt.with_name("thing.pt.optim").unlink()
    assert train("--max-steps", 7).code == 0
    assert (formats.read(pt).step, updates(pt)) == (7, 3)
    assert not torch.equal(formats.read(pt).vectors["clip_l"], with_moments)


def test_an_optimizer_of_other_vectors_is_left_alone_and_a_damaged_one_is_an_error(
    train: Train, cli: Cli, word: Path, tmp_path: Path
) -> None:
    pt, optim = word.with_suffix(".pt"), word.with_name("thing.pt.optim")
    cli("convert", word, pt)
    word.unlink()
    assert train("--max-steps", 2).code == 0
    assert cli("create", "thing", "--init-text", "moon", "--overwrite").code == 0
    assert train("--max-steps", 3).code == 0
    assert updates(pt) == 3
    optim.write_bytes(b"PK\x03\x04")
    before = pt.read_bytes()
    outcome = train("--max-steps", 5)
    assert outcome.code == 1
    assert len(outcome.errors) == 1
    assert "thing.pt.optim" in outcome.errors[0]
    assert pt.read_bytes() == before


@pytest.mark.parametrize("target", ["sub/thing.bin", "thing.png", "thing.webp", "old/thing.pt"])
def test_files_of_every_kind_are_trained(target: str, train: Train, cli: Cli, word: Path) -> None:
    """A .pt stays; an image is left alone and a .bin set aside, and both go on as .safetensors beside it."""
    path = word.parent / target
    path.parent.mkdir(exist_ok=True)
    assert cli("convert", word, path).code == 0
    before = formats.read(word).vectors["clip_l"]
    word.unlink()
    was = path.read_bytes()
    assert train("--max-steps", 2).code == 0
    trained = path if path.suffix == ".pt" else path.with_suffix(".safetensors")
    kept = path.with_name("thing.bin.bak") if path.suffix == ".bin" else path
    assert trained == path or kept.read_bytes() == was
    assert not torch.equal(formats.read(trained).vectors["clip_l"], before)
    assert formats.read(trained).step == 2


def test_resuming_with_other_images_warns(
    train: Train, word: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "images"
    scenes.write_images(folder, scenes.concept(scenes.CONCEPTS[1], 3, seed=1))
    assert train("--max-steps", 2, images=folder).code == 0
    assert train("--max-steps", 3, "--resume", images=folder).code == 0
    assert "not exactly" not in caplog.text
    (folder / "02.txt").write_text("another caption", encoding="utf-8")
    assert train("--max-steps", 4, "--resume", images=folder).code == 0
    assert caplog.text.count("images or captions. It is resumed, but not exactly") == 1
    (folder / "03.png").unlink()
    assert train("--max-steps", 5, "--resume", images=folder).code == 0
    assert caplog.text.count("images or captions. It is resumed, but not exactly") == 2
    assert formats.read(word).step == 5
    assert train("--max-steps", 6, "--resume", "--shuffle-tags", images=folder).code == 0
    assert "started: shuffle_tags. It is resumed" in caplog.text


@pytest.mark.parametrize("name", ["мой кот", "猫", "Ça va. no-1_b", "naïve"])
def test_names_and_paths_of_every_language(name: str, cli: Cli, train: Train, tmp_path: Path) -> None:
    folder = tmp_path / "картинки und Bilder"
    scenes.write_images(folder, scenes.concept(scenes.CONCEPTS[1], 2, seed=1))
    (folder / "01.txt").write_text("auf dem Gräs, 草の上", encoding="utf-8")
    (folder / "02.txt").unlink()
    (folder / "02.png").rename(folder / "07-лежит на траве.png")
    places = ("--embeddings-dir", tmp_path / "вложения 1")
    assert cli("create", name, "--init-text", "star", *places).code == 0
    assert (
        train("--max-steps", 2, "--preview-every", 2, "--preview-sampling-steps", 1, *places, name=name, images=folder).code
        == 0
    )
    assert formats.read(tmp_path / "вложения 1" / f"{name}.safetensors").step == 2
    (run,) = tmp_path.glob("textual_inversion/*/*")
    assert run.name == name
    assert (run / "images" / f"{name}-2.png").is_file()
    assert (run / "before_after.png").is_file()
    assert json.loads((run / "settings.json").read_text(encoding="utf-8"))["name"] == name
    assert train("--max-steps", 3, "--resume", *places, name=name, images=folder).code == 0
    assert cli("generate", f"a photo of {name} на траве", "--steps", 1, "--out", "рисунок.png", *places).code == 0


def test_a_word_that_is_in_the_captions_too_is_trained(train: Train, word: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    scenes.write_images(folder, scenes.concept(scenes.CONCEPTS[1], 2, seed=1))
    for path in folder.glob("*.txt"):
        path.write_text("thing, a thing on grass", encoding="utf-8")
    before = formats.read(word).vectors["clip_l"]
    assert train("--max-steps", 2, images=folder).code == 0
    assert not torch.equal(formats.read(word).vectors["clip_l"], before)


def test_previews_copies_and_tables_change_nothing(
    train: Train, word: Path, word_file: Path, tmp_path: Path, same_numbers: Callable[[Path, Path], bool]
) -> None:
    assert train("--max-steps", 4, "--csv-every", 0, "--save-every", 0).code == 0
    bare = word.rename(tmp_path / "bare.safetensors")
    word.write_bytes(word_file.read_bytes())
    flags = ("--preview-every", 1, "--preview-sampling-steps", 1, "--save-every", 1, "--state-every", 1)
    assert train("--max-steps", 4, *flags).code == 0
    assert same_numbers(word, bare)


def test_bf16_on_a_cpu_trains(train: Train, word: Path) -> None:
    before = formats.read(word).vectors["clip_l"]
    assert train("--max-steps", 3, "--precision", "bf16", "--device", "cpu").code == 0
    after = formats.read(word).vectors["clip_l"]
    assert after.dtype == torch.float32
    assert bool(after.isfinite().all())
    assert not torch.equal(after, before)


def test_images_that_cannot_be_read_are_named_and_left_out(
    train: Train, word: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "images"
    scenes.write_images(folder, scenes.concept(scenes.CONCEPTS[1], 2, seed=1))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    Image.new("L", (300, 90), 128).save(folder / "wide grey.tiff")
    outcome = train("--max-steps", 2, images=folder)
    assert "Done after step 2, on 3 images." in outcome.out
    assert "Skipped: broken.jpg" in caplog.text
    (run,) = tmp_path.glob("textual_inversion/*/*")
    settings = json.loads((run / "settings.json").read_text(encoding="utf-8"))
    assert (settings["num_images"], settings["skipped"]) == (3, ["broken.jpg"])


def test_the_second_run_of_a_day_has_a_folder_of_its_own(train: Train, word: Path, tmp_path: Path) -> None:
    for steps in (1, 2, 3):
        assert train("--max-steps", steps).code == 0
    assert sorted(path.name for path in tmp_path.glob("textual_inversion/*/*")) == ["thing", "thing-2", "thing-3"]
    assert train("--max-steps", 4, "--resume").code == 0
    (last,) = tmp_path.glob("textual_inversion/*/thing-3")
    assert json.loads((last / "settings.json").read_text(encoding="utf-8"))["train"]["max_steps"] == 4


def test_a_damaged_state_is_one_error(train: Train, word: Path, tmp_path: Path) -> None:
    assert train("--max-steps", 2).code == 0
    (state,) = tmp_path.glob("textual_inversion/*/*/state.safetensors")
    before = word.read_bytes()
    state.write_bytes(state.read_bytes()[:300])
    outcome = train("--max-steps", 4, "--resume")
    assert outcome.code == 1
    assert len(outcome.errors) == 1
    assert "state.safetensors" in outcome.errors[0]
    assert "start a new run" in outcome.errors[0].lower()
    assert word.read_bytes() == before


def test_the_state_is_written_last_so_that_nothing_of_its_step_is_missing(
    train: Train, word: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What dies just after it goes on from there, and would not write that step's line, copy and preview again."""
    save, found = Run.save_state, []

    def saving(run: Run, state: TrainState, fingerprint: str) -> None:
        if state.step == 2 and not found:
            found.extend(path.name for path in run.path.rglob("*-2.*"))
            found.append(len(run.losses()))
            raise KeyboardInterrupt
        save(run, state, fingerprint)

    monkeypatch.setattr(Run, "save_state", saving)
    outcome = train(
        "--max-steps", 4, "--state-every", 1, "--save-every", 2, "--preview-every", 2, "--preview-sampling-steps", 1
    )
    assert outcome.code == 130
    assert sorted(found[:-1]) == ["thing-2.png", "thing-2.png", "thing-2.safetensors"]
    assert found[-1] == 2
    assert formats.read(word).step == 2
    assert train("--resume").code == 0
    assert formats.read(word).step == 4


def test_evaluate_does_without_an_init_text_that_nobody_knows(cli: Cli, word: Path, images: Path) -> None:
    assert cli("convert", word, word.parent / "old.pt").code == 0
    facts = json.loads(cli("evaluate", "old", "--images", images, "--json").out)
    assert set(facts["loss"]) == {"word", "no_word"}
    assert facts["better_than_init_text"] is None
    assert "init text" not in cli("evaluate", "old", "--images", images).out
