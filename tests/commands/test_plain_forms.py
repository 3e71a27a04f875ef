"""Every command in its plain form does what its help says."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ti_trainer import __version__, formats
from ti_trainer.__main__ import COMMANDS
from ti_trainer.commands import demo
from ti_trainer.config import presets
from ti_trainer.config.training import TrainConfig, options
from ti_trainer.embedding import Embedding

Cli = Callable[..., "object"]


def the_run(folder: Path) -> Path:
    """The only run under a log folder."""
    (found,) = folder.glob("*/*")
    return found


def test_create_begins_as_its_init_text(cli: Cli, tmp_path: Path) -> None:
    assert cli("create", "one", "--init-text", "star").code == 0
    outcome = cli("create", "my thing", "--init-text", "red star", "--num-vectors", 4)
    assert outcome.code == 0
    assert "my thing.safetensors" in outcome.out
    one, four = (formats.read(tmp_path / f"embeddings/{name}.safetensors") for name in ("one", "my thing"))
    assert (four.name, four.step, four.family) == ("my thing", 0, "embedded")
    assert four.info["init_text"] == "red star"
    vectors = four.vectors["clip_l"]
    assert vectors.shape == (4, 64)
    assert torch.equal(vectors[2:], one.vectors["clip_l"])  # two rows of each token, as two are the default
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[1], vectors[2])


def test_create_replaces_an_embedding_only_if_told(cli: Cli, word: Path) -> None:
    before = word.read_bytes()
    outcome = cli("create", "thing", "--init-text", "moon")
    assert outcome.code == 1
    assert "--overwrite" in outcome.err
    assert word.read_bytes() == before
    assert cli("create", "thing", "--init-text", "moon", "--overwrite").code == 0
    assert formats.read(word).info["init_text"] == "moon"


def test_train_writes_the_embedding_and_a_run_that_explains_itself(
    train: Cli, word: Path, tmp_path: Path, images: Path
) -> None:
    template = tmp_path / "my template.txt"
    template.write_text("a [name]\n", encoding="utf-8")
    before = formats.read(word)
    flags = ("--max-steps", 6, "--seed", 1, "--template", template, "--log-dir", tmp_path / "logs", "--save-every", 3)
    outcome = train(*flags, "--preview-every", 3, "--preview-sampling-steps", 2)
    assert outcome.code == 0
    rate, rest = outcome.out.split("\n", 1)
    assert re.fullmatch(r"Learning rate auto: 0\.00\d+ for this model, falling to 0 at step 6\.", rate)
    assert rest.startswith(
        "Dataset: 3 images, 3 with a caption (.txt), 0 with a mask.\n"
        "Training on embedded (embedded, epsilon prediction).\nDone after step 6, on 3 images."
    )
    after = formats.read(word)
    assert after.step == 6
    assert after.checkpoint == "embedded"
    assert len(after.checkpoint_hash) == 10
    assert after.info["init_text"] == "star"
    assert not torch.equal(after.vectors["clip_l"], before.vectors["clip_l"])

    run = the_run(tmp_path / "logs")
    written = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    numbered = {f"{folder}/thing-{step}.png" for folder in ("images", "image_embeddings") for step in (0, 3, 6)}
    copies = {f"embeddings/thing-{step}.safetensors" for step in (3, 6)}
    single = {"settings.json", "state.safetensors", "textual_inversion_loss.csv", "loss.png", "before_after.png"}
    assert written == numbered | copies | single
    for named in ("loss.png", "before_after.png", str(word.relative_to(tmp_path))):
        assert named in outcome.out
    assert formats.read(run / "image_embeddings/thing-6.png").step == 6
    settings = json.loads((run / "settings.json").read_text(encoding="utf-8"))
    assert settings["name"] == "thing"
    assert settings["images"] == str(images)
    assert TrainConfig.from_dict(settings["train"]).max_steps == 6
    with (run / "textual_inversion_loss.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "epoch", "epoch_step", "loss", "learn_rate"]
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(float(row["loss"]) > 0 for row in rows)
    rates = [float(row["learn_rate"]) for row in rows]  # auto: falling to 0
    assert rates == pytest.approx([rates[0] * left / 6 for left in range(6, 0, -1)])


def test_settings_of_a_run_reproduce_it(
    train: Cli, word: Path, word_file: Path, tmp_path: Path, same_numbers: Callable[[Path, Path], bool]
) -> None:
    flags = (
        "--max-steps",
        5,
        "--seed",
        7,
        "--learning-rate",
        "0.01:2, 1e-3",
        "--batch-size",
        2,
        "--latent-sampling",
        "random",
    )
    assert train(*flags, "--log-dir", "logs").code == 0
    first = word.rename(tmp_path / "first.safetensors")
    word.write_bytes(word_file.read_bytes())
    assert train("--config", the_run(tmp_path / "logs") / "settings.json", "--log-dir", "again").code == 0
    assert same_numbers(word, first)
    assert (
        the_run(tmp_path / "again").joinpath("textual_inversion_loss.csv").read_bytes()
        == the_run(tmp_path / "logs").joinpath("textual_inversion_loss.csv").read_bytes()
    )
    word.write_bytes(word_file.read_bytes())
    assert train("--config", the_run(tmp_path / "logs") / "settings.json", "--seed", 8, "--log-dir", "flags first").code == 0
    assert not same_numbers(word, first)


def test_resume_goes_on_as_if_it_had_not_stopped(
    train: Cli, word: Path, word_file: Path, tmp_path: Path, same_numbers: Callable[[Path, Path], bool]
) -> None:
    options = ("--batch-size", 2, "--learning-rate", "0.005")
    assert train("--max-steps", 8, *options, "--log-dir", "whole").code == 0
    whole = word.rename(tmp_path / "whole.safetensors")
    word.write_bytes(word_file.read_bytes())
    assert train("--max-steps", 5, *options).code == 0
    assert train("--max-steps", 8, "--resume").code == 0  # the batch size is that of the run
    assert same_numbers(word, whole)
    assert len(list(tmp_path.glob("textual_inversion/*/*"))) == 1


def test_generate_draws_what_seed_and_embeddings_say(
    cli: Cli, word: Path, tmp_path: Path, foreign: Embedding, caplog: pytest.LogCaptureFixture
) -> None:
    def pixels(name: str, *flags: object, prompt: str = "a photo of thing and other") -> np.ndarray:
        assert cli("generate", prompt, "--out", tmp_path / "out" / name, "--steps", 3, *flags).code == 0
        with Image.open(tmp_path / "out" / name) as image:
            return np.asarray(image)

    first = pixels("a.png")
    assert first.shape == (64, 64, 3)
    generator = torch.Generator().manual_seed(0)
    formats.write(Embedding("other", {"clip_l": torch.randn(3, 64, generator=generator)}), word.parent / "sub" / "other.pt")
    formats.write(foreign, word.parent / "wide.safetensors")
    (word.parent / "broken.pt").write_bytes(b"PK\x03\x04 no archive")
    both = pixels("b.png")
    passed_over = [record.getMessage() for record in caplog.records if "Skipped" in record.getMessage()]
    assert len(passed_over) == 2
    assert "broken.pt" in passed_over[0]
    assert "wide.safetensors is for SD 1.x models" in passed_over[1]
    assert not np.array_equal(first, both), "other is a word now"
    assert np.array_equal(both, pixels("c.png"))
    assert not np.array_equal(both, pixels("d.png", "--seed", 2))
    formats.write(Embedding("thing", {"clip_l": torch.randn(2, 64, generator=generator)}), word)
    assert not np.array_equal(both, pixels("e.png"))
    assert pixels("f.webp", "--width", 96, "--height", 80, "--cfg-scale", 1.5, "--negative-prompt", "red").shape == (
        80,
        96,
        3,
    )
    assert cli("generate", "a star", "--out", "plain.jpg", "--clip-skip", 2, "--steps", 1).code == 0


def test_generate_says_which_embeddings_it_used(cli: Cli, word: Path, foreign: Embedding) -> None:
    formats.write(foreign, word.parent / "wide.safetensors")

    def said(*arguments: object) -> tuple[str, list[str]]:
        outcome = cli("generate", *arguments, "--out", "a.png", "--steps", 1)
        return outcome.out, [line for line in outcome.err.splitlines() if " prompt" in line]

    assert said("a (THING:1.2)", "--negative-prompt", "a thing")[0] == (
        "Wrote a.png. Embeddings used: thing in the prompt; thing in the negative prompt.\n"
    )
    assert said("a thign") == (
        "Wrote a.png. No embedding was used.\n",
        ["Did you mean thing in the prompt?"],
    )
    used, (warning,) = said("wide thing")
    assert used == "Wrote a.png. Embeddings used: thing in the prompt.\n"
    assert warning.startswith("wide in the prompt was not used: wide.safetensors is for SD 1.x models")
    refused = cli("generate", "a (thing:1.2.3)", "--out", "b.png")
    assert refused.code == 1
    assert "found 1.2.3), expected a number before the bracket" in refused.errors[0]


@pytest.mark.usefixtures("word")
def test_generate_says_that_there_is_no_folder_of_embeddings(cli: Cli) -> None:
    outcome = cli("generate", "a thing", "--embeddings-dir", "embedings", "--out", "a.png", "--steps", 1)
    assert outcome.out == "Wrote a.png. No embedding was used.\n"
    assert "No embeddings are used: there is no folder embedings." in outcome.err.splitlines()


def test_create_says_what_the_page_says_of_a_name(cli: Cli, tmp_path: Path) -> None:
    def said(*arguments: object) -> str:
        return cli("create", *arguments, "--embeddings-dir", tmp_path / "names").err

    assert said("star") == (
        "Every prompt that contains the word star would use this embedding. Choose a name that is not a word, such as "
        "my-star.\n"
    )
    assert said("my-star") == ""
    assert "already" in said("My-Star")
    assert said("my - star").startswith("Prompts cannot distinguish my - star from the existing my-star")
    assert "No prompt can contain the name 'BREAK'" in said("BREAK")
    assert not (tmp_path / "names" / "BREAK.safetensors").exists()


def test_evaluate_measures_a_word_as_it_was_trained_beside_its_negative(cli: Cli, word: Path, images: Path) -> None:
    formats.write(Embedding("thing", {"clip_l": torch.ones(2, 64)}, 9, info={"init_text": "*"}), word)

    def measured(*flags: object) -> dict[str, float]:
        return json.loads(cli("evaluate", "thing", "--images", images, "--json", *flags).out)["loss"]

    alone = measured()
    formats.write(Embedding("thing-neg", {"clip_l": torch.full((1, 64), 0.5)}, 9), word.with_stem("thing-neg"))
    outcome = cli("evaluate", "thing", "--images", images, "--json")
    assert json.loads(outcome.out)["loss"] == alone
    assert "Measured without thing-neg" in outcome.err
    assert "thing was created from '*', which describes nothing" in outcome.err
    both, stronger = measured("--negative"), measured("--negative", "--train-cfg-scale", 5)
    assert both["word"] != alone["word"]
    assert stronger["word"] not in (alone["word"], both["word"])
    assert measured("--negative", "--train-cfg-scale", 1) == pytest.approx(alone, rel=1e-5), "then nothing is guided"
    assert both["init_text"] != alone["init_text"], "it is guided like the word, or they could not be compared"
    assert both["no_word"] == pytest.approx(alone["no_word"], rel=1e-4), "away from itself"


def test_evaluate_measures_three_losses_and_always_the_same(cli: Cli, word: Path, images: Path) -> None:
    formats.write(Embedding("thing", {"clip_l": torch.ones(2, 64)}, 9, info={"init_text": "star"}), word)
    outcome = cli("evaluate", "thing", "--images", images, "--json")
    assert outcome.code == 0
    facts = json.loads(outcome.out)
    assert (facts["name"], facts["step"], facts["images"]) == ("thing", 9, 3)
    assert set(facts["loss"]) == {"word", "init_text", "no_word"}
    assert len(set(facts["loss"].values())) == 3
    assert facts["better_than_init_text"] == pytest.approx(1 - facts["loss"]["word"] / facts["loss"]["init_text"])
    assert facts["better_than_no_word"] == pytest.approx(1 - facts["loss"]["word"] / facts["loss"]["no_word"])
    assert json.loads(cli("evaluate", "thing", "--images", images, "--json").out) == facts
    other = json.loads(cli("evaluate", "thing", "--images", images, "--init-text", "red moon", "--json").out)["loss"]
    assert (other["word"], other["no_word"]) == (facts["loss"]["word"], facts["loss"]["no_word"])
    assert other["init_text"] != facts["loss"]["init_text"]
    words = cli("evaluate", "thing", "--images", images).out
    assert all(f"{loss:.5f}" in words for loss in facts["loss"].values())


def test_info_describes_each_file_on_a_line(cli: Cli, word: Path, tmp_path: Path, foreign: Embedding) -> None:
    formats.write(foreign, tmp_path / "wide.pt")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing")
    outcome = cli("info", word, tmp_path / "wide.pt", "--json")
    assert outcome.code == 0
    first, second = map(json.loads, outcome.out.splitlines())
    assert {key: first[key] for key in ("name", "step", "family", "vectors", "checkpoint", "error")} == {
        "name": "thing",
        "step": 0,
        "family": "embedded",
        "vectors": {"clip_l": [2, 64]},
        "checkpoint": "embedded",
        "error": None,
    }
    assert (second["family"], second["vectors"]) == ("SD 1.x", {"clip_l": [1, 768]})

    outcome = cli("info", broken, word, tmp_path / "missing.pt", "--json")
    assert outcome.code == 1
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    assert [line["name"] for line in lines] == [None, "thing", None]
    assert "broken.safetensors cannot be read" in lines[0]["error"]
    assert lines[1]["error"] is None
    assert "missing.pt" in lines[2]["error"]
    assert set(lines[0]) == set(lines[1])
    assert "2 x 64" in cli("info", word).out


def test_convert_writes_other_formats_and_overwrites_only_if_told(cli: Cli, word: Path, tmp_path: Path) -> None:
    wanted = formats.read(word)
    for target, flags in (("a.pt", ()), ("b.safetensors", ("--format", "kohya")), ("c.png", ()), ("d.bin", ())):
        outcome = cli("convert", word, tmp_path / target, *flags)
        assert outcome.code == 0
        assert target in outcome.out
        assert torch.equal(formats.read(tmp_path / target).vectors["clip_l"], wanted.vectors["clip_l"])
    before = (tmp_path / "a.pt").read_bytes()
    outcome = cli("convert", word, tmp_path / "a.pt", "--name", "other")
    assert outcome.code == 1
    assert len(outcome.errors) == 1
    assert "--overwrite" in outcome.errors[0]
    assert (tmp_path / "a.pt").read_bytes() == before
    assert cli("convert", word, tmp_path / "a.pt", "--name", "other", "--overwrite").code == 0
    assert formats.read(tmp_path / "a.pt").name == "other"


def test_help_names_every_command_and_every_option(cli: Cli) -> None:
    outcome = cli("--help")
    assert outcome.code == 0
    for command in COMMANDS:
        assert command in outcome.out
        assert cli(command, "--help").code == 0
    shown = cli("train", "--help").out
    words, squeezed = shown.replace(",", " ").split(), "".join(shown.split())  # lines are broken anywhere
    for option in options():
        assert option.flag in words
        assert "".join(f"{option.help} (default: {option.default!r})".split()) in squeezed
    assert cli("--version").out.split()[-1] == __version__


def test_the_demo_begins_anew_each_time(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(max_steps=3, preview_every=3, preview_sampling_steps=2, preview_prompt=demo.CONFIG.preview_prompt)
    monkeypatch.setattr(demo, "CONFIG", config)
    for _ in range(2):
        outcome = cli("demo")
        assert outcome.code == 0
        assert "Done after step 3, on 8 images." in outcome.out
    assert formats.read(tmp_path / f"embeddings/{demo.NAME}.safetensors").step == 3


def test_a_preset_gives_options_that_flags_go_before(train: Cli, word: Path, tmp_path: Path) -> None:
    saved = TrainConfig(learning_rate="0.002", seed=7, preview_every=0, max_steps=1)
    presets.save(tmp_path / "logs" / presets.FOLDER, "mine", saved)
    assert train("--preset", "mine", "--seed", 8, "--log-dir", "logs").code == 0
    (settings,) = (tmp_path / "logs").glob("*/*/settings.json")
    used = json.loads(settings.read_text())["train"]
    assert (used["learning_rate"], used["seed"], used["max_steps"]) == ("0.002", 8, 1)
    assert "There is no preset 'yours'" in train("--preset", "yours").err
