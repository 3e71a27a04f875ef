"""What a run that learns from prompts shows at its end, and the image it is shown in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import TinyHost
from PIL import Image

from ti_trainer.config.training import TrainConfig
from ti_trainer.formats import embeddings_dir
from ti_trainer.host import GenerationRequest
from ti_trainer.runs.comparison import EFFECT, GAP, effect, findings, for_negative_prompt
from ti_trainer.runs.distill import Distillation
from ti_trainer.runs.plots import Row, labelled
from ti_trainer.runs.run_folder import Run

QUICK = {"max_steps": 2, "preview_every": 0, "save_every": 0}


class Noting(TinyHost):
    """Notes what it is asked for."""

    def generate(self, model: object, request: GenerationRequest, embeddings: object) -> Image.Image:
        self.__dict__.setdefault("asked", []).append(request)
        return super().generate(model, request, embeddings)


@pytest.fixture
def host(tmp_path: Path) -> Noting:
    return Noting(tmp_path)


def trained(host: Noting, wanted: Distillation, **options: object) -> Run:
    config = wanted.config({**QUICK, **options})
    wanted.create(host, config, None, overwrite=False, warn=lambda text: None)
    run = wanted.session(host, config).train().run
    assert (run.path / "comparison.png").is_file()
    return run


def grey(shade: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (shade, shade, shade))


def test_the_prompt_is_compared_with_the_embedding_at_the_same_seeds(host: Noting) -> None:
    run = trained(host, Distillation("x-scene", "a red cat"), preview_seed=7)
    asked = [(each.prompt, each.seed) for each in host.asked[-8:]]
    assert asked == [(prompt, seed) for prompt in ("a red cat", "x-scene") for seed in range(7, 11)]
    assert set(run.measured()) == {GAP}
    (found,) = findings(run)
    assert f"closes {run.measured()[GAP]:.1%} of the gap" in found


def test_an_embedding_that_is_worse_than_no_text_is_said_to_be(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "x-word", {"name": "x-word"})
    run.record_measured({GAP: -0.25})
    assert findings(run) == [
        "The embedding's predictions are farther from the prompt's than those without any text: compare the images."
    ]


def test_a_slider_is_shown_from_its_opposite_to_its_prompt(host: Noting) -> None:
    run = trained(host, Distillation("x-size", "big", "small", ("a [name] cat", "a [name], red")))
    asked = [each.prompt for each in host.asked[-10:]]
    names = [f"(x-size:{weight})" for weight in (-2, -1, 1, 2)]
    assert asked[:5] == [*(f"a {name} cat" for name in names[:2]), "a  cat", *(f"a {name} cat" for name in names[2:])]
    assert asked[7] == "a, red"
    assert len({each.seed for each in host.asked[-10:]}) == 2
    assert set(run.measured()) == {f"slider_at_{weight}" for weight in (-2, -1, 0, 1, 2)}
    assert findings(run)[0].startswith("From the middle between the two prompts, weight 1 reaches")


def test_an_embedding_for_the_negative_prompt_is_shown_with_and_without_it(host: Noting) -> None:
    options = {"preview_prompt": "a cat", "preview_negative_prompt": "[name], blurry"}
    run = trained(host, Distillation("x-bad", "ugly, grey, dull", for_negative_prompt=True), **options)
    asked = [(each.prompt, each.negative_prompt) for each in host.asked[-8:]]
    assert asked == [("a cat", "blurry")] * 4 + [("a cat", "x-bad, blurry")] * 4
    assert set(run.measured()) == {GAP, EFFECT}


def test_a_pair_is_shown_with_neither_either_and_both(host: Noting) -> None:
    wanted = Distillation("x-look", "a red cat", negative_prompt="ugly, grey")
    run = trained(host, wanted, preview_prompt="a cat, [name]", preview_negative_prompt="blurry", preview_every=1)
    asked = [(each.prompt, each.negative_prompt) for each in host.asked]
    expected = [("a cat", "blurry"), ("a cat, x-look", "blurry"), ("a cat", "x-look-neg, blurry")]
    both = ("a cat, x-look", "x-look-neg, blurry")
    assert asked[-16:] == [each for each in (*expected, both) for _ in range(4)]
    assert {each.seed for each in host.asked[-16:-12]} == {each.seed for each in host.asked[-4:]}
    assert asked[-17] == both, "so are previews"
    first, second, changes = findings(run)
    assert (first.split()[0], second.split()[0]) == ("x-look", "x-look-neg")
    assert "x-look-neg in the negative prompt by" in changes
    trained(host, replace(wanted, name="y-look"), preview_prompt="a cat")
    assert [each.prompt for each in host.asked[-12:-8]] == ["a cat, y-look"] * 4, "the name is added where it is missing"


def test_which_runs_are_for_the_negative_prompt() -> None:
    usual = TrainConfig(preview_prompt="a cat", preview_negative_prompt="[name]")
    assert for_negative_prompt(usual)
    assert not for_negative_prompt(replace(usual, preview_negative_prompt="ugly"))
    assert not for_negative_prompt(replace(usual, preview_prompt="a [name] cat"))
    assert not for_negative_prompt(replace(usual, preview_prompt=""))


def test_the_effect_is_relative_to_another_seed() -> None:
    images = [grey(0), grey(100), grey(0), grey(100)]
    assert effect(images, images) == 0
    assert effect(images, [grey(50)] * 4) == pytest.approx(0.5)
    assert effect(images, images[::-1]) == pytest.approx(1)


def test_rows_have_their_images_side_by_side() -> None:
    image = labelled([Row("one", [grey(0), grey(90)], ["-1", "+1"]), Row("zwei \u4e8c", [grey(180)])])
    shades = {pixel[0] for pixel in np.asarray(image).reshape(-1, 3)}
    assert {0, 90, 180, 255} <= shades
    large = labelled([Row("", [Image.new("RGB", (2048, 1024))])])
    assert large.width < 300


def test_a_run_is_continued_after_its_comparison(host: Noting) -> None:
    run = trained(host, Distillation("x-scene", "a red cat"))
    count, gap = len(host.asked), run.measured()[GAP]
    wanted = Distillation("x-scene", "a red cat")
    session = wanted.session(host, replace(wanted.config(QUICK), max_steps=30))
    replace(session, resume=run, generated=None).train()
    assert len(host.asked) == count + 8, "no image of the prompt was missing"
    assert run.measured()[GAP] != gap
    assert embeddings_dir.load(host.embeddings_dir, "x-scene")[0].step == 30
