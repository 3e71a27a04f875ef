"""Cards of a DreamArtist run: the word's has its negative with it, and the negative has one of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import TinyHost

from ti_trainer import formats
from ti_trainer.config.training import TrainConfig
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs.session import Session

OPTIONS = {"max_steps": 4, "preview_every": 2, "save_every": 2, "width": 16, "height": 16, "ema_rate": 0.9}


@pytest.mark.parametrize("negative", [True, False])
def test_a_card_has_what_the_copies_of_its_step_have(negative: bool, tmp_path: Path, images: Callable[..., Path]) -> None:
    host = TinyHost(tmp_path / "host")
    embeddings_dir.create_pair(host.embeddings_dir, host.model, ("x-word", "red cat", 2), ("*", 3))
    config = TrainConfig(negative=negative, **OPTIONS)
    run = Session(host, "x-word", images((16, 16), (16, 16)), config).train().run
    cards, copies = run.path / "image_embeddings", run.path / "embeddings"
    names = [f"x-word{neg}-{step}.png" for neg in (["", "-neg"] if negative else [""]) for step in (0, 2, 4)]
    assert sorted(path.name for path in cards.iterdir()) == sorted(names)
    for step in (2, 4):
        card = cards / f"x-word-{step}.png"
        assert formats.read(card).name == card.stem, "the WebUI takes this for its word"
        assert same(formats.read(card), copies / f"x-word-{step}.safetensors")
        carried = formats.read_negative(card)
        if not negative:
            assert carried is None
            continue
        assert (carried.name, carried.step, carried.num_vectors) == (f"x-word-{step}-neg", step, 3)
        assert same(replace(carried, name=f"x-word-neg-{step}"), copies / f"x-word-neg-{step}.safetensors")
        own = cards / f"x-word-neg-{step}.png"
        assert same(formats.read(own), copies / f"x-word-neg-{step}.safetensors")
        assert formats.read_negative(own) is None


def same(embedding: object, copy: Path) -> bool:
    found = formats.read(copy)
    return (embedding.step, embedding.name) == (found.step, found.name) and torch.equal(
        embedding.vectors["clip_l"], found.vectors["clip_l"]
    )
