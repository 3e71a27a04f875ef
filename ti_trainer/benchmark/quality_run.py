"""Train one embedding on drawn images and measure it: held-out loss, likeness, obedience and norm."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ti_trainer.benchmark.quality_prompts import THINGS, questions
from ti_trainer.benchmark.quality_reading import read
from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Dataset
from ti_trainer.data.images import Frame
from ti_trainer.data.loading import DatasetOptions, load_dataset
from ti_trainer.data.prompts import NAME, Prompter, load_plain, load_template
from ti_trainer.embedding import Embedding, initial_vectors, negative_name, unwanted
from ti_trainer.host import GenerationRequest
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.hosts.diffusers.sampling import generate_batch
from ti_trainer.model import Vectors
from ti_trainer.runs.builders import pixel_loss_of, prompter_of
from ti_trainer.tiny_model.making.measure_learning import colour_distance
from ti_trainer.tiny_model.making.scenes import Scene, concept, draw_array, write_images
from ti_trainer.training.evaluation import described, validation_loss
from ti_trainer.training.trainer import Trainer
from ti_trainer.training.vocabulary import Vocabulary

WORD = "concept"
HELD_OUT, HELD_OUT_SEED = 12, 1000
ALIKE = 8  # images that are compared with drawings of the same scenes
STEPS, CFG_SCALE = 10, 4.0


@dataclass(frozen=True)
class Cell:
    """One training: the concept, the data and the embedding; `seed` also chooses the images."""

    concept: int
    seed: int
    images: int
    captions: bool
    vectors: int
    steps: int


class Concept:
    """A thing with its held-out images, and the model that learns it."""

    def __init__(self, model: DiffusersModel, number: int) -> None:
        self.model, self.number, self.thing = model, number, THINGS[number]
        self.questions = questions(number)
        self.held_out = concept(self.thing, HELD_OUT, HELD_OUT_SEED)
        self._items = load(
            model, self.held_out, Prompter(WORD, [NAME]), DatasetOptions(latent_sampling="deterministic")
        ).items

    @cached_property
    def references(self) -> dict[str, float]:
        """The held-out loss of the init text and of no word."""
        return {"init_text": self.loss(self.thing.shape, {}), "no_word": self.loss("", {})}

    def loss(self, word: str, embeddings: Mapping[str, Vectors]) -> float:
        """The validation loss of the held-out images with their captions."""
        text = f"a photo of {word}" if word else "a photo"
        return validation_loss(
            self.model, self._items, [described(text, each.caption or "") for each in self._items], embeddings
        )

    def measure(self, word: str, embeddings: Mapping[str, Vectors]) -> dict[str, float]:
        """All measures of a word. Shares are between 0 and 1; a gain is over the loss of another text."""
        loss = self.loss(word, embeddings)
        against = {f"gain_over_{key}": 1 - loss / value for key, value in self.references.items()}
        norms = [_norm(each, Vocabulary.of(self.model)) for each in embeddings.values()][:1]
        return {"loss": loss, **against, **self._seen(word, embeddings), "norm": norms[0] if norms else 1.0}

    def _seen(self, word: str, embeddings: Mapping[str, Vectors]) -> dict[str, float]:
        """Likeness and obedience of generated images."""
        scenes = self.held_out[:ALIKE]
        prompts = [each.prompt_with(word) for each in self.questions] + [f"a photo of {word} {where}" for _, where in scenes]
        images = self._generate(prompts, embeddings)
        readings = [read(each) for each in images]
        answers: dict[str, list[bool]] = {}
        for question, reading in zip(self.questions, readings, strict=False):
            for key, right in question.answers(reading).items():
                answers.setdefault(key, []).append(right)
        of_shape = [
            each.shape == self.thing.shape
            for each, question in zip(readings, self.questions, strict=False)
            if question.kind == "place"
        ]
        of_shape += [each.shape == self.thing.shape for each in readings[len(self.questions) :]]
        alike = images[len(self.questions) :]
        distances = [colour_distance(each, draw_array(scene)) for each, (scene, _) in zip(alike, scenes, strict=True)]
        own = [each.texture == self.thing.texture for each in readings[len(self.questions) :]]
        return {
            "colour_distance": statistics.mean(distances),
            "shape": statistics.mean(of_shape),
            "own_texture": statistics.mean(own),
            **{key: statistics.mean(each) for key, each in answers.items()},
        }

    def _generate(self, prompts: Sequence[str], embeddings: Mapping[str, Vectors]) -> list[np.ndarray]:
        """Images (64, 64, 3) in [0, 1]; a negative embedding among `embeddings` is used as in its training."""
        requests = [
            GenerationRequest(
                prompt,
                unwanted(prompt, WORD) if negative_name(WORD) in embeddings else "",
                cfg_scale=CFG_SCALE,
                steps=STEPS,
                seed=seed,
            )
            for seed, prompt in enumerate(prompts)
        ]
        return [np.asarray(each, np.float32) / 255 for each in generate_batch(self.model, requests, embeddings)]


def train(model: DiffusersModel, cell: Cell, config: TrainConfig) -> dict[str, dict[str, torch.Tensor]]:
    """The vectors that a training ends with, by the embedding's name; the moving average if the options ask for one."""
    config = replace(config, seed=cell.seed, max_steps=cell.steps)
    thing = THINGS[cell.concept]
    scenes = concept(thing, cell.images, seed=1 + cell.seed)
    prompter = prompter_of(config, WORD, load_template(config.template), load_plain(config.template))
    dataset = load(
        model, scenes if cell.captions else [(scene, "") for scene, _ in scenes], prompter, DatasetOptions.of(config)
    )
    tokens = model.token_embeddings(thing.shape)
    names = [WORD, negative_name(WORD)][: 2 if config.negative else 1]
    embedding, *others = (
        Embedding(
            name,
            {encoder: initial_vectors(each, cell.vectors) for encoder, each in tokens.items()},
            info={"init_text": thing.shape},
        )
        for name in names
    )
    pixel_loss = pixel_loss_of(config, model.device, torchscript=False)
    trainer = Trainer(model, dataset, embedding, config, negative=others[0] if others else None, pixel_loss=pixel_loss)
    for _ in trainer.run():
        pass
    trained = trainer.copies[-len(names) :]  # averages come last
    return {name: dict(each.vectors) for name, each in zip(names, trained, strict=True)}


def load(model: DiffusersModel, scenes: Sequence[tuple[Scene, str]], prompter: Prompter, options: DatasetOptions) -> Dataset:
    """The images of scenes as a dataset; a caption "" is none."""
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), list(scenes))
        for number, (_, caption) in enumerate(scenes, 1):
            if not caption:
                (Path(folder) / f"{number:02}.txt").unlink()
        size = model.default_size_px
        return load_dataset(Path(folder), model, Frame((size, size)), prompter, options, warn=lambda message: None)


def measure_cell(concept_of: Concept, cell: Cell, config: TrainConfig) -> dict[str, float]:
    """Train and measure one cell; `cpu_s` is the CPU time of the training."""
    started = time.process_time()
    trained = train(concept_of.model, cell, config)
    seconds = time.process_time() - started
    return {**concept_of.measure(WORD, trained), "cpu_s": seconds}


def _norm(vectors: Vectors, vocabulary: Vocabulary) -> float:
    """The mean norm of the vectors, in norms of the vocabulary."""
    ratios = [float(each.norm(dim=1).mean()) / vocabulary.norms[encoder] for encoder, each in vectors.items()]
    return statistics.mean(ratios)
