"""What "Use in txt2img" and "Generate with it" put into entries after a run, and what Create does with cards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

from fakes import TinyHost
from PIL import Image

from ti_trainer import formats
from ti_trainer.config.training import TrainConfig
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs.job import Job, Snapshot
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session
from ti_trainer.ui import prompt_fields
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import create

EMPTY = {"preview_prompt": "", "preview_negative_prompt": "", "preview_cfg_scale": 7.0}


@pytest.fixture
def ran(tmp_path: Path) -> Callable[..., Snapshot]:
    """A run of x-word that is over; options are TrainConfig's."""

    def made(**options: Any) -> Snapshot:
        run = Run.create(tmp_path, "x-word", {"name": "x-word", "train": TrainConfig(**options).to_dict()})
        return Snapshot("done", "x-word", run=run)

    return made


def pressed(now: Snapshot, values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Twice, which adds nothing twice."""
    once = prompt_fields.add_embedding(now, values)
    assert prompt_fields.add_embedding(now, once) == once
    assert list(once) == list(values)
    return tuple(once.values())


def test_after_dreamartist_the_negative_and_the_scale_come_along(ran: Callable[..., Snapshot]) -> None:
    now = ran(negative=True, train_cfg_scale="4")
    assert pressed(now, EMPTY) == ("a photo of x-word", "a photo of x-word-neg", 4.0)
    given = {"preview_prompt": "a drawing", "preview_negative_prompt": "blurry", "preview_cfg_scale": 9}
    expected = ("a drawing, a photo of x-word", "a drawing, a photo of x-word-neg, blurry", 4.0)
    assert pressed(now, given) == expected


def test_it_is_what_the_previews_of_the_run_were_drawn_with(tmp_path: Path, images: Callable[..., Path]) -> None:
    host, drawn = TinyHost(tmp_path / "host"), []
    embeddings_dir.create_pair(host.embeddings_dir, host.model, ("x-word", "red cat", 2), ("*", 3))
    generate = host.generate
    host.generate = lambda model, drawing, words: drawn.append(drawing) or generate(model, drawing, words)
    options = {"preview_prompt": "a drawing of [name]", "preview_negative_prompt": "blurry", "train_cfg_scale": "2-4"}
    config = TrainConfig(max_steps=1, negative=True, preview_every=1, width=16, height=16, **options)
    run = Session(host, "x-word", images((16, 16)), config).train().run
    given = {"preview_prompt": "a drawing of x-word", "preview_negative_prompt": "blurry", "preview_cfg_scale": 7}
    drawing = drawn[-1]
    assert pressed(Snapshot("done", "x-word", run=run), given) == (
        drawing.prompt,
        drawing.negative_prompt,
        drawing.cfg_scale,
    )


@pytest.mark.parametrize(("scale", "expected"), [("1.5-3:cos", 3.0), ("5", 5.0), ("0.5", 1.0), ("30", 30.0)])
def test_the_scale_is_one_that_sliders_have(scale: str, expected: float, ran: Callable[..., Snapshot]) -> None:
    assert pressed(ran(negative=True, train_cfg_scale=scale), EMPTY)[2] == expected


def test_a_negative_that_learned_from_a_prompt_is_alone_in_the_negative_prompt(ran: Callable[..., Snapshot]) -> None:
    pair = ran(teacher_prompt="good", teacher_negative_prompt="bad")
    given = {"preview_prompt": "", "preview_negative_prompt": "blurry", "preview_cfg_scale": 9}
    assert pressed(pair, given) == ("a photo of x-word", "x-word-neg, blurry", 9)


def test_a_plain_run_leaves_negative_prompt_and_scale_alone(ran: Callable[..., Snapshot]) -> None:
    given = {"preview_prompt": "", "preview_negative_prompt": "x-word-neg, blurry", "preview_cfg_scale": 9}
    assert pressed(ran(train_cfg_scale="4"), given) == ("a photo of x-word", "x-word-neg, blurry", 9)


@pytest.mark.parametrize("said", ["x-word", "a (x-word:1.2)", "[X-Word]", "x-word,on grass", "a photo of x-word."])
def test_what_is_said_already_stays_as_it_is(said: str, ran: Callable[..., Snapshot]) -> None:
    negative = said.replace("word", "word-neg").replace("Word", "Word-neg")
    given = {"preview_prompt": said, "preview_negative_prompt": negative, "preview_cfg_scale": 3.0}
    assert pressed(ran(negative=True), given) == (said, negative, 3.0)


@pytest.mark.parametrize("other", ["x-word-neg", "my-x-word", "x-words", "x-word-neg-ema"])
def test_a_longer_word_is_another_word(other: str, ran: Callable[..., Snapshot]) -> None:
    given = {**EMPTY, "preview_prompt": other, "preview_negative_prompt": "x-word"}
    expected = (f"{other}, a photo of x-word", f"{other}, a photo of x-word-neg, x-word", 3.0)
    assert pressed(ran(negative=True), given) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a photo of x-word", "a photo of y-word"),
        ("masterpiece, (X-Word:1.2) in snow", "masterpiece, (y-word:1.2) in snow"),
        ("x-words of x-word", "x-words of y-word"),
        ("x-word and y-word", "x-word and y-word"),  # somebody wants both
        ("something else", "something else, a photo of y-word"),  # ours was taken out
    ],
)
def test_the_next_word_takes_the_place_of_the_one_before(ran: Callable[..., Snapshot], prompt: str, expected: str) -> None:
    _, ours = prompt_fields.replace_embedding(("", ""), ran(), EMPTY)
    given = {**EMPTY, "preview_prompt": prompt, "preview_negative_prompt": "blurry, x-word"}
    used, _ = prompt_fields.replace_embedding(ours, replace(ran(), name="y-word"), given)
    assert used == {**given, "preview_prompt": expected}


def test_negatives_of_the_word_before_go_with_it(ran: Callable[..., Snapshot]) -> None:
    x, y = ran(negative=True), replace(ran(negative=True), name="y-word")
    given = {"preview_prompt": "a drawing", "preview_negative_prompt": "blurry, dark", "preview_cfg_scale": 3.0}
    after_x, ours = prompt_fields.replace_embedding(("", ""), x, given)
    after_y, ours_y = prompt_fields.replace_embedding(ours, y, after_x)
    assert after_y == prompt_fields.add_embedding(y, given)
    assert prompt_fields.replace_embedding(ours_y, y, after_y) == (after_y, ours_y), "a second press changes nothing"
    plain, _ = prompt_fields.replace_embedding(ours_y, replace(ran(), name="z-word"), after_y)
    assert (plain["preview_prompt"], plain["preview_negative_prompt"]) == ("a drawing, a photo of z-word", "blurry, dark")
    edited = {**after_y, "preview_negative_prompt": "old, a photo of y-word-neg, blurry, (dark, y-word-neg:1.2)"}
    left, _ = prompt_fields.replace_embedding(ours_y, replace(ran(), name="z-word"), edited)
    assert left["preview_negative_prompt"] == "old, blurry, (dark, y-word-neg:1.2)", "what else is written stays"


def test_entries_that_a_host_lacks_are_not_made_up_and_missing_settings_do_no_harm(
    ran: Callable[..., Snapshot], tmp_path: Path
) -> None:
    now = ran(negative=True)
    assert prompt_fields.add_embedding(now, {"preview_prompt": None})["preview_prompt"] == "a photo of x-word"
    (now.run.path / "settings.json").unlink()
    assert pressed(now, EMPTY) == ("a photo of x-word", "", 7.0)
    assert pressed(Snapshot("done", "x-word"), EMPTY) == ("a photo of x-word", "", 7.0)


def test_negatives_are_taken_out_of_cards_and_the_host_learns_of_it(tmp_path: Path) -> None:
    host = TinyHost(tmp_path)
    page = Page(host, Job())
    embeddings_dir.create_pair(host.embeddings_dir, host.model, ("x-word", "red cat", 2), ("*", 3))
    word, negative = (embeddings_dir.load(host.embeddings_dir, name)[0] for name in ("x-word", "x-word-neg"))
    for name in ("one", "x-word"):
        formats.write_card(Image.new("RGB", (64, 64)), word, host.embeddings_dir / f"{name}.png", negative=negative)
    before = (host.embeddings_dir / "x-word-neg.safetensors").read_bytes()
    said = create.extract_negatives(page)
    assert "one-neg.safetensors" in said
    assert "x-word-neg" not in said, "that has a file already"
    assert (host.embeddings_dir / "x-word-neg.safetensors").read_bytes() == before
    assert (embeddings_dir.load(host.embeddings_dir, "one-neg")[0].num_vectors, host.changes) == (3, 1)
    again = create.extract_negatives(page)
    assert "have files already" in again
