"""What goes wrong is said in one line that names it, with exit code 1, and changes no file."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ti_trainer import formats, tiny_model
from ti_trainer.embedding import Embedding

Cli = Callable[..., "object"]


def failed(outcome: object, *words: str) -> str:
    """Its one line, in which all the words stand."""
    assert outcome.code == 1, outcome
    assert "Traceback" not in outcome.err
    (line,) = outcome.errors
    assert outcome.err.splitlines()[-1] == line
    for word in words:
        assert word in line
    for promise in ("Done", "Wrote", "Created", "saved"):
        assert promise not in outcome.out
    return line


@pytest.mark.parametrize("name", ["a/b", "../up", "", " ", ".hidden", "dot.", "a*", "con", "NUL.txt", "a:b", "a\nb"])
def test_illegal_names_are_refused(name: str, cli: Cli, tmp_path: Path) -> None:
    failed(cli("create", name, "--init-text", "star"), "The name", repr(name))
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("count", [0, -1, 76])
def test_a_number_of_vectors_must_fit_into_a_prompt(count: int, cli: Cli) -> None:
    failed(cli("create", "thing", "--num-vectors", count), "Number of vectors", str(count), "1 to 75")


def test_what_is_missing_is_named(cli: Cli, train: Cli, word: Path, tmp_path: Path, images: Path) -> None:
    before = word.read_bytes()
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    failed(train("--images", "nowhere"), "nowhere", "does not exist")
    failed(train("--images", "empty"), "no images", "empty")
    failed(train("--images", "broken"), "None of the 1 images", "a.png")
    failed(train("--images", word), "is a file", "Choose a folder")
    failed(train(name="other"), "no embedding 'other'", "thing", "create")
    failed(train("--embeddings-dir", "no folder"), "no embedding 'thing'", "none yet")
    failed(train("--config", "none.json"), "none.json", "cannot be read")
    failed(train("--resume"), "no run of 'thing'", "Start a new run")
    failed(train("--template", "no template"), "no template", "subject_filewords")
    failed(cli("evaluate", "other", "--images", images), "no embedding 'other'")
    failed(cli("evaluate", "thing", "--images", "nowhere"), "nowhere")
    failed(cli("evaluate", "thing", "--images", "broken"), "broken")
    failed(cli("bench", "--images", "nowhere", "--steps", 10), "nowhere")
    failed(cli("convert", "none.pt", "out.safetensors"), "none.pt")
    assert word.read_bytes() == before
    assert not (tmp_path / "textual_inversion").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--learning-rate", "fast"), ("schedule", "fast")),
        (("--learning-rate", "0.005:x"), ("schedule", "0.005:x")),
        (("--learning-rate", ""), ("schedule",)),
        (("--learning-rate", "-1"), ("schedule", "-1")),
        (("--max-steps", "0"), ("Max steps", "at least 1")),
        (("--batch-size", "-3"), ("Batch size", "-3")),
        (("--width", "60"), ("width", "60", "8")),
        (("--tag-dropout", "1.5"), ("Drop out", "1.5")),
        (("--clip-skip", "9"), ("Clip skip", "9", "3")),
        (("--precision", "fp16", "--device", "cpu"), ("fp16", "CUDA")),
        (("--device", "toaster"), ("toaster", "cpu")),
        (("--model", "nowhere"), ("nowhere", "embedded")),
        (("--filename-word-regex", "("), ("regular expression", "(")),
    ],
)
def test_options_that_cannot_be_used_are_refused(
    flags: tuple[str, ...], words: tuple[str, ...], train: Cli, word: Path
) -> None:
    before = word.read_bytes()
    failed(train("--max-steps", 3, *flags), *words)
    assert word.read_bytes() == before


def test_a_template_must_have_the_word_in_every_line(train: Cli, word: Path, tmp_path: Path) -> None:
    template = tmp_path / "t.txt"
    template.write_text("a photo of [name]\na photo of [filewords]\n", encoding="utf-8")
    failed(train("--template", template), "without [name]", "a photo of [filewords]")
    template.write_text("\n", encoding="utf-8")
    failed(train("--template", template), "empty")


def test_an_embedding_of_another_model_is_refused(
    cli: Cli, train: Cli, word: Path, images: Path, foreign: Embedding
) -> None:
    formats.write(foreign, word.parent / "wide.safetensors")
    before = (word.parent / "wide.safetensors").read_bytes()
    failed(train(name="wide"), "'wide'", "SD 1.x", "clip_l 64")
    failed(cli("evaluate", "wide", "--images", images), "'wide'", "SD 1.x")
    assert (word.parent / "wide.safetensors").read_bytes() == before


def test_what_is_trained_already_is_not_trained_again(train: Cli, word: Path, tmp_path: Path) -> None:
    assert train("--max-steps", 2).code == 0
    before = word.read_bytes()
    failed(train("--max-steps", 2), "trained for 2 steps already", "raise max steps")
    failed(train("--max-steps", 9, "--learning-rate", "0.1:2"), "ends at")
    failed(train("--resume"), "trained for 2 steps already")
    assert word.read_bytes() == before
    assert len(list(tmp_path.glob("textual_inversion/*/*"))) == 1


def test_settings_of_a_newer_version_or_no_settings_are_refused(train: Cli, word: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.json"
    for text, words in (
        ('{"train": {"max_steps": 2, "warp": 9}}', ("Unknown options: warp",)),
        ('{"train": {"max_steps": "many"}}', ("max_steps", "many")),
        ('{"train": 3}', ("settings.json",)),
        ("[1]", ("settings.json", "cannot be read")),
        ("{", ("settings.json", "cannot be read")),
        ("[]", ("found a list, expected an object",)),
        ('{"train": null}', ("found null, expected an object",)),
        ('{"seed": 1, "max_steps": 2, "seed": 3}', ("'seed' appears more than once",)),
        ("\ufeff" + '{"width": 511}', ("Width (width): found 511",)),
    ):
        settings.write_text(text, encoding="utf-8")
        failed(train("--config", settings), *words)
    settings.write_text('{"width": 511}', encoding="utf-16")
    failed(train("--config", settings), "Width (width): found 511")
    failed(train("--config", tmp_path), "cannot be read (it is a folder)")
    assert "Errno" not in failed(train("--config", "nowhere.json"), "nowhere.json cannot be read (")


def test_generate_refuses_what_cannot_be_drawn(cli: Cli, tmp_path: Path) -> None:
    for flags, words in (
        (("--out", "image.txt"), ("image.txt", ".png")),
        (("--out", "image"), ("image", ".png")),
        (("--out", "a.png", "--steps", 0), ("0", "at least 1")),
        (("--out", "a.png", "--width", 100), ("100", "multiple of 8")),
        (("--out", "a.png", "--height", -8), ("-8",)),
        (("--out", "a.png", "--seed", 2**70), (str(2**70),)),
        (("--out", "a.png", "--clip-skip", 0), ("0", "at least 1")),
        (("--out", "a.png", "--clip-skip", 7), ("Clip skip", "7")),
        (("--out", "a.png", "--model", tmp_path), (str(tmp_path),)),
    ):
        failed(cli("generate", "a star", *flags), *words)
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "a", "--out", "a.png", "--steps", "1.000"),
        ("generate", "a", "--out", "a.png", "--cfg-scale", "7,5"),
        ("create", "x", "--num-vectors", "2,5"),
        ("create", "x", "--negative-vectors", "many"),
        ("page", "--port", "7.860"),
        ("bench", "--batch-sizes", "1", "4,0"),
    ],
)
def test_numbers_of_every_command_are_read_alike(arguments: tuple[str, ...], cli: Cli) -> None:
    outcome = cli(*arguments)
    assert outcome.code == 2
    assert (
        f"{arguments[-2] if arguments[0] != 'bench' else '--batch-sizes'}: found '{arguments[-1]}', expected" in outcome.err
    )


def test_convert_and_bench_refuse_what_they_cannot_do(cli: Cli, word: Path, tmp_path: Path, images: Path) -> None:
    failed(cli("convert", word, "a.txt"), "a.txt", "safetensors")
    failed(cli("convert", word, "a.pt", "--format", "diffusers"), "a.pt")
    failed(cli("convert", images / "01.png", "a.pt"), "01.png")
    failed(cli("convert", word, "a.pt", "--name", "a/b"), "'a/b'")
    failed(cli("bench", "--steps", 3), "3", "at least 10")
    failed(cli("bench", "--batch-sizes", 0), "0", "at least 1")
    failed(cli("bench", "--against", "nobody=here"), "nobody")
    assert not (tmp_path / "a.pt").exists()


def test_files_where_folders_should_be_and_names_too_long(cli: Cli, train: Cli, word: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    before = word.read_bytes()
    failed(train("--max-steps", 2, "--log-dir", "file"), "file")
    failed(train("--max-steps", 2, "--embeddings-dir", "file"), "file")
    failed(cli("create", "x", "--embeddings-dir", "file"), "file")
    failed(cli("create", "x" * 300), "has 300 bytes, expected at most 200")
    failed(cli("generate", "a star", "--steps", 1, "--out", "file/a.png"), "file")
    assert word.read_bytes() == before


def test_training_that_diverges_keeps_what_was_learned_and_says_so(train: Cli, word: Path) -> None:
    before = formats.read(word).vectors["clip_l"]
    line = failed(
        train("--max-steps", 40, "--learning-rate", "0.005:15, 1e38"), "not a finite number", "step 10", "learning rate"
    )
    assert str(word.relative_to(word.parents[1])) in line
    after = formats.read(word)
    assert after.step == 10
    assert bool(after.vectors["clip_l"].isfinite().all())
    assert not torch.equal(after.vectors["clip_l"], before)


def test_training_that_moves_nothing_ends_soon(train: Cli, word: Path) -> None:
    failed(train("--max-steps", 500, "--learning-rate", "1e-30"), "not moved", "raise the learning rate")


def test_copies_that_cannot_be_written_in_mid_run_are_reported_and_training_continues(
    train: Cli, word: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file stands where their folder should be."""

    def begun(path: Path) -> None:
        (path.parent / "embeddings").write_text("in the way", encoding="utf-8")

    write = formats.write

    def writing(embedding: Embedding, path: Path, format: str | None = None) -> None:
        if path.name == "thing-3.safetensors":
            begun(path)
        write(embedding, path, format)

    monkeypatch.setattr(formats, "write", writing)
    assert train("--max-steps", 6, "--save-every", 3).code == 0
    assert formats.read(word).step == 6
    (said,) = [each for each in caplog.messages if "could not be written" in each]
    assert said.startswith("The copy of the embedding could not be written; training continues.")
    assert "embeddings" in said


def test_debug_shows_where_an_error_came_from(cli: Cli, run: Callable[..., object], word: Path) -> None:
    plain = cli("create", "thing")
    failed(plain, "thing", "--overwrite")
    assert len(plain.err.splitlines()) == 1
    debug = run("convert", word, "out.xyz", "--debug")
    assert debug.code == 1
    assert "Traceback" in debug.err
    assert len(debug.errors) == 1


def test_a_damaged_model_folder_is_one_error(cli: Cli, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in tiny_model.MODEL.iterdir():
        (model / path.name).symlink_to(path)
    unet = model / "unet"
    unet.unlink()
    line = failed(cli("create", "x", "--model", model), str(model), "cannot be read")
    unet.mkdir()
    (unet / "config.json").write_bytes((tiny_model.MODEL / "unet/config.json").read_bytes())
    weights = "diffusion_pytorch_model.safetensors"
    (unet / weights).write_bytes((tiny_model.MODEL / "unet" / weights).read_bytes()[:100_000])
    assert failed(cli("create", "x", "--model", model), str(model), "cannot be read") != line


def test_an_interrupt_while_libraries_are_imported_is_no_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)
    outcome = cli("train", "thing")
    assert outcome.code == 130
    assert outcome.err == "Interrupted.\n"


def test_tensorboard_without_its_package_is_one_error(train: Cli, word: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    before = word.read_bytes()
    failed(train("--max-steps", 2, "--tensorboard"), "tensorboard", "pip install")
    assert word.read_bytes() == before
