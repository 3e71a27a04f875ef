"""One update of a training on the pretended device, and what has to hold in it; for each host's models."""

from __future__ import annotations

from typing import Any

import torch
from device import CUDA, FakeDevice
from models import NAME, dataset_for, embeddings_for

from ti_trainer.config.training import TrainConfig
from ti_trainer.model import DiffusionModel
from ti_trainer.training.pixel_loss import PixelLoss
from ti_trainer.training.trainer import Trainer

DREAMARTIST = {"negative": True, "ema_rate": 0.9, "clip_grad": "norm", "latent_sampling": "random", "batch_size": 2}


def trainer_for(
    model: DiffusionModel, size_px: int = 64, *, negative: bool = False, pixel_loss: PixelLoss | None = None, **options: Any
) -> Trainer:
    config = TrainConfig(**{"max_steps": 1000, "negative": negative, **options})
    pixels = torch.zeros(3, size_px, size_px, dtype=torch.uint8) if pixel_loss else None
    random = config.latent_sampling == "random"
    dataset = dataset_for(model, size_px, negative=f"{NAME}-neg" if negative else "", random=random, pixels=pixels)
    embedding, *others = embeddings_for(model, 2, *(NAME, f"{NAME}-neg") if negative else (NAME,))
    return Trainer(model, dataset, embedding, config, None, *others or (None,), pixel_loss)


def update(trainer: Trainer) -> list[torch.Tensor]:
    """An ordinary update, at which neither the loss scale is still found nor losses are checked; returns its gradients."""
    active, batches, found = trainer.active_trials, trainer._batches(), []
    trainer._settles_at = 0
    gradients = trainer._objective.gradients

    def noted(*args: Any) -> Any:
        losses, some = gradients(*args)
        found.extend(some)
        return losses, some

    object.__setattr__(trainer._objective, "gradients", noted)
    with trainer.model.training():
        losses, _, _ = trainer._update(active, batches, lambda: False)
    assert (losses.device, losses.dtype) == (CUDA, torch.float32)
    return found


def check(trainer: Trainer, device: FakeDevice) -> None:
    """Everything is where it has to be, and the CPU waits for nothing."""
    with device.watching() as waits:
        found = update(trainer)
    parameters = [one for each in trainer.trials for one in each.parameters]
    assert len(found) == len(parameters)
    assert {(each.device, each.dtype) for each in (*found, *parameters)} == {(CUDA, torch.float32)}
    assert not waits, "\n".join(dict.fromkeys(waits))
