"""What a mask is for, measured: a masked run learns the thing and not what is around it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Item
from ti_trainer.data.images import Frame
from ti_trainer.data.loading import DatasetOptions, load_dataset
from ti_trainer.data.prompts import NAME, Prompter
from ti_trainer.formats import embeddings_dir
from ti_trainer.host import ModelOptions
from ti_trainer.hosts.diffusers.host import StandaloneHost
from ti_trainer.runs.session import Session
from ti_trainer.tiny_model.making.scenes import CONCEPTS, Scene, draw
from ti_trainer.training.evaluation import fixed_batches
from ti_trainer.training.step import training_loss

THING = CONCEPTS[2]
# Surroundings that no caption names, the same in all images: a word that is free to learn them does.
SCENES = [
    Scene(THING, 0.3, position, (0.93, 0.15, 0.70), (0.55, 0.80, 0.10), horizon=True)
    for position in ((0.0, 0.0), (-0.1, 0.0), (0.1, 0.05), (0.0, -0.1))
]
VARIED = Path(__file__).parents[1] / "fixtures" / "varied_prompts.txt"  # with prompts that are wrong about the images
CONFIG = TrainConfig(
    max_steps=80, learning_rate="0.006", template=str(VARIED), precision="fp32", preview_every=0, prompt_preservation=0.0
)


def where_the_thing_is(scene: Scene) -> np.ndarray:
    """(64, 64), True where other surroundings change nothing."""
    elsewhere = draw(replace(scene, top=(0, 0, 1), bottom=(0, 0, 1)))
    return np.abs(np.asarray(draw(scene), int) - np.asarray(elsewhere, int)).sum(2) < 12


def train(host: StandaloneHost, folder: Path, word: str, *, masked: bool) -> None:
    folder.mkdir()
    for number, scene in enumerate(SCENES):
        draw(scene).save(folder / f"{number}.png")
        if masked:
            Image.fromarray((where_the_thing_is(scene) * 127).astype(np.uint8)).save(folder / f"{number}_att.png")
    embeddings_dir.create(host.embeddings_dir, host.open_model(), word, THING.shape, 2)
    Session(host, word, folder, CONFIG).train()


@pytest.fixture
def host(tmp_path: Path) -> StandaloneHost:
    return StandaloneHost("embedded", "cpu", tmp_path / "embeddings", tmp_path / "logs")


def test_a_masked_run_learns_the_thing_and_not_its_surroundings(host: StandaloneHost, tmp_path: Path) -> None:
    train(host, tmp_path / "plain", "zz-plain", masked=False)
    train(host, tmp_path / "masked", "zz-masked", masked=True)
    model = host.open_model(ModelOptions("fp32"))
    words = embeddings_dir.words(host.embeddings_dir, model)
    frame, prompter = Frame((64, 64)), Prompter("zz-plain", [NAME])
    items = load_dataset(tmp_path / "plain", model, frame, prompter, DatasetOptions(latent_sampling="deterministic")).items

    def losses(word: str) -> tuple[float, float]:
        """Of the thing, and of its surroundings."""
        return tuple(_loss(word, items, weights) for weights in (thing, surroundings))

    def _loss(word: str, items: tuple[Item, ...], weights: list[Tensor]) -> float:
        batches = fixed_batches(items, [f"a photo of {word}"] * len(items), len(model.alphas_cumprod))
        with torch.no_grad():
            found = [
                training_loss(model, replace(each, weight=weight.expand(len(each.timesteps), *weight.shape)), words).mean()
                for each, weight in zip(batches, weights, strict=True)
            ]
        return float(torch.stack(found).mean())

    shares = [
        interpolate(
            torch.from_numpy(where_the_thing_is(scene)).float()[None, None], items[0].latents.shape[-2:], mode="area"
        )
        for scene in SCENES
    ]
    thing, surroundings = ([(each > 0.9)[0].float() for each in shares], [(each < 0.1)[0].float() for each in shares])
    thing, surroundings = ([each / each.mean() for each in part] for part in (thing, surroundings))
    begun, plain, masked = (losses(word) for word in (THING.shape, "zz-plain", "zz-masked"))
    assert plain[1] < 0.93 * begun[1]  # without a mask the surroundings are learned
    assert masked[1] > 0.97 * begun[1]
    assert masked[0] < 0.9 * begun[0]
    assert masked[0] < 0.9 * plain[0]
