"""Our training loop and a bare one, measured: seconds per step, time by part, peak memory."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.utils.hooks import RemovableHandle

from ti_trainer.benchmark import peer_driver, peers
from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Dataset
from ti_trainer.embedding import Embedding
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.model import Conditioning, ImageConditioning, Vectors
from ti_trainer.training.trainer import Trainer
from ti_trainer.workbench.diagnosis import NAME, first_vectors

PARTS = ("text", "unet_forward", "unet_backward", "rest")


def new_trainer(model: DiffusersModel, dataset: Dataset, batch_size: int, steps: int) -> Trainer:
    """A trainer of one vector that starts from `star`, with default settings but the peers' rate and objective."""
    rate = str(peers.LEARNING_RATE)
    config = TrainConfig(
        max_steps=steps, batch_size=batch_size, template="subject", learning_rate=rate, prompt_preservation=0.0
    )
    return Trainer(model, dataset, Embedding(NAME, first_vectors(model)), config)


def bare_step(model: DiffusersModel, dataset: Dataset, batch_size: int) -> Callable[[], None]:
    """Forward and backward of text encoder and U-Net on one batch, and nothing else."""
    batch = next(dataset.batches(batch_size)).on(model.device)
    pad = {"padding": "max_length", "max_length": 77, "return_tensors": "pt"}
    ids = [each.tokenizer(list(batch.prompts), **pad).input_ids.to(model.device) for each in model.text_encoders]

    def step() -> None:
        hooks = [
            each.table.register_forward_hook(lambda module, inputs, embedded: embedded.detach().requires_grad_())
            for each in model.text_encoders
        ]
        states = [each.states(own) for each, own in zip(model.text_encoders, ids, strict=True)]
        for hook in hooks:
            hook.remove()
        cond = Conditioning(torch.cat([hidden for hidden, _ in states], -1), states[-1][1])
        prediction = model.predict(batch.latents, batch.timesteps, cond, batch.images)
        mse_loss(prediction.float(), batch.noise).backward()

    return step


def turn(step: Callable[[], object], steps: int) -> tuple[float, float]:
    """Wall and CPU seconds per step."""
    peer_driver.synchronize()
    begun, begun_cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    peer_driver.synchronize()
    return (time.perf_counter() - begun) / steps, (time.process_time() - begun_cpu) / steps


def peak_memory(step: Callable[[], object], steps: int) -> tuple[int, str] | None:
    """Peak memory of these steps in bytes, and its kind: see peer_driver."""
    peer_driver.forget_peak()
    for _ in range(steps):
        step()
    peer_driver.synchronize()
    return peer_driver.peak_memory()


def time_by_part(model: DiffusersModel, step: Callable[[], object], steps: int) -> dict[str, float]:
    """Mean milliseconds per step of each of PARTS, and of the whole `step`.

    `text` is forward and backward, `rest` is batch, noise, loss and optimizer. On CUDA, events are read at the end, so that
    the measurement does not synchronize.
    """
    marks: list[tuple[str, Any]] = []
    with _marking(model, lambda part: marks.append((part, _now(model.device)))):
        for _ in range(steps):
            marks.append(("rest", _now(model.device)))
            step()
        marks.append(("", _now(model.device)))
    peer_driver.synchronize()
    spent = dict.fromkeys(PARTS, 0.0)
    for (part, begun), (_, ended) in itertools.pairwise(marks):
        spent[part] += _between(begun, ended)
    return {**{part: each / steps for part, each in spent.items()}, "step": sum(spent.values()) / steps}


@contextmanager
def _marking(model: DiffusersModel, mark: Callable[[str], None]) -> Iterator[None]:
    """Call `mark` with the name of each part when it begins."""
    encode_prompts, predict = model.encode_prompts, model.predict
    marked: list[RemovableHandle] = []

    def encode(prompts: Sequence[str], embeddings: Mapping[str, Vectors]) -> Conditioning:
        mark("text")
        cond = encode_prompts(prompts, embeddings)
        mark("rest")
        for each in (cond.hidden, cond.pooled):
            if each is not None:
                each.register_hook(lambda _: mark("text"))  # the backward pass has reached the text encoder
        if not marked:
            leaves = [each for vectors in embeddings.values() for each in vectors.values()]
            marked.extend(each.register_hook(lambda _: mark("rest")) for each in leaves)
        return cond

    def predicted(latents: Tensor, timesteps: Tensor, cond: Conditioning, images: ImageConditioning) -> Tensor:
        mark("unet_forward")
        prediction = predict(latents, timesteps, cond, images)
        mark("rest")
        prediction.register_hook(lambda _: mark("unet_backward"))
        return prediction

    vars(model).update(encode_prompts=encode, predict=predicted)  # in place of the methods
    try:
        yield
    finally:
        del model.encode_prompts, model.predict
        for hook in marked:
            hook.remove()


def _now(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _between(begun: Any, ended: Any) -> float:
    """Milliseconds."""
    return (ended - begun) * 1000 if isinstance(begun, float) else begun.elapsed_time(ended)
