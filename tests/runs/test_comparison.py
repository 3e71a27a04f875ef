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


def test_a_slider_is_shown_from_its_opposite_to_its_prompt(host: Noting) -> None:
    trained(host, Distillation("x-size", "big", "small", ("a [name] cat", "a [name], red")))
    asked = [each.prompt for each in host.asked[-10:]]
    names = [f"(x-size:{weight})" for weight in (-2, -1, 1, 2)]
    assert asked[:5] == [*(f"a {name} cat" for name in names[:2]), "a  cat", *(f"a {name} cat" for name in names[2:])]
    assert asked[7] == "a, red"
    assert len({each.seed for each in host.asked[-10:]}) == 2


def test_an_embedding_for_the_negative_prompt_is_shown_with_and_without_it(host: Noting) -> None:
    options = {"preview_prompt": "a cat", "preview_negative_prompt": "[name], blurry"}
    run = trained(host, Distillation("x-bad", "ugly, grey, dull", for_negative_prompt=True), **options)
    asked = [(each.prompt, each.negative_prompt) for each in host.asked[-8:]]
    assert asked == [("a cat", "blurry")] * 4 + [("a cat", "x-bad, blurry")] * 4
    assert set(run.measured()) == {GAP, EFFECT}


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
