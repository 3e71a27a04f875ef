"""Attention matching: fit vectors so that the U-Net's cross-attention gives what it gives for the teacher's prompt.

The U-Net sees a prompt through its cross-attention alone, and SDXL's also through the pooled state. Once its queries are
recorded, while the teacher predicts, an update needs the text encoder only, which is far smaller than the U-Net.

N queries, I inner width of a layer, T tokens of a prompt, D width of its hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Batch, Dataset
from ti_trainer.functional.objective import add_noise
from ti_trainer.model import Conditioning, CrossAttention, DiffusionModel
from ti_trainer.training.gradients import with_less_memory
from ti_trainer.training.step import Embeddings
from ti_trainer.training.teacher import Teacher
from ti_trainer.training.trainable_embedding import TrainableEmbedding

UPDATES_PER_STEP = 3  # of the run's steps that follow
RATE = 1.2  # learning rate in spreads of the vocabulary, falling linearly to 0
SAMPLES, POSITIONS = 64, 4  # noisy images that queries are recorded of, and latent pixels of each
MOST_LAYERS = 16  # of the U-Net's, evenly spread: SD 1.5 has 16 and SDXL 70, whose weights would take 0.7 GB
PROMPTS_AT_ONCE = 2  # so that both embeddings of a companion set are in each update
LOSS_SCALE = 1024.0  # so that gradients do not underflow in a text encoder in half precision; Adam is not affected by it


def suits(teacher: Teacher | None, config: TrainConfig) -> bool:
    """Whether vectors are fitted before a run with these options. Sliders got weaker; `sphere` does not change norms."""
    return teacher is not None and teacher.lora is None and not teacher.opposite and config.optimizer != "sphere"


@dataclass(frozen=True)
class _Layer:
    """The weights (I, D) and biases of one layer's key and value; it computes in float32."""

    key: tuple[Tensor, Tensor | None]
    value: tuple[Tensor, Tensor | None]
    heads: int

    def __call__(self, queries: Tensor, hidden: Tensor) -> Tensor:
        """What queries (N, I) get from hidden states (T, D): (N, I)."""
        key, value = (
            F.linear(hidden.float(), weight.float(), None if bias is None else bias.float())  # (T, I)
            for weight, bias in (self.key, self.value)
        )
        return attend(queries, key, value, self.heads)


@dataclass(frozen=True)
class _Goal:
    """What a prompt's queries (N, I) get in each layer, and its pooled state if there is one.

    The scales are the mean squared distances from there to what no text gives.
    """

    queries: Sequence[Tensor]
    wanted: Sequence[Tensor]
    scales: Sequence[Tensor]
    pooled: Tensor | None
    pooled_scale: Tensor | None

    def loss(self, layers: Sequence[_Layer], cond: Conditioning) -> Tensor:
        """The mean over layers of the squared distance, relative to that of no text."""
        losses = [
            F.mse_loss(layer(queries, cond.hidden[0]), wanted) / scale
            for layer, queries, wanted, scale in zip(layers, self.queries, self.wanted, self.scales, strict=True)
        ]
        if self.pooled is not None and self.pooled_scale is not None and cond.pooled is not None:
            losses.append(F.mse_loss(cond.pooled.float(), self.pooled) / self.pooled_scale)
        return torch.stack(losses).mean()


@dataclass(frozen=True)
class AttentionMatching:
    """The layers, and the goal of each prompt that the embedding is trained in."""

    layers: Sequence[_Layer]
    goals: Mapping[str, _Goal]

    @classmethod
    def of(
        cls,
        model: DiffusionModel,
        teacher: Teacher,
        batches: Iterable[Batch],
        seed: int,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> AttentionMatching | None:
        """Record the teacher's predictions for these batches; None if the model has no plain linear layers there.

        When stopped, of the batches so far, and of one at least.
        """
        with model.cross_attention() as found, torch.no_grad():
            if not found:
                return None
            modules = found[:: -(-len(found) // MOST_LAYERS) or 1]
            recorder = _Recorder(modules, seed)
            for batch in batches:
                recorder.record(model, teacher, batch)
                if should_stop():
                    break
            layers = recorder.layers()
            if not layers:
                return None
            goals = {prompt: _goal(model, layers, teacher, prompt, records) for prompt, records in recorder.records.items()}
        return cls(layers, goals)

    def fit(
        self,
        model: DiffusionModel,
        embeddings: Embeddings,
        updates: int,
        spread: float,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Move the vectors; they stay as they were if the result is not finite. `spread`: of the vocabulary's elements."""
        rate = RATE * spread
        parameters = [vectors for each in embeddings.values() for vectors in each.values()]
        before = [each.detach().clone() for each in parameters]
        optimizer = torch.optim.Adam(parameters, rate)
        prompts = list(self.goals)
        for step in range(updates):
            if should_stop():
                break
            optimizer.param_groups[0]["lr"] = rate * (1 - step / updates)
            start = step * PROMPTS_AT_ONCE
            several = dict.fromkeys(prompts[number % len(prompts)] for number in range(start, start + PROMPTS_AT_ONCE))
            losses = [self.goals[each].loss(self.layers, model.encode_prompts([each], embeddings)) for each in several]
            loss = torch.stack(losses).sum() * LOSS_SCALE
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            for each, gradient in zip(parameters, gradients, strict=True):
                each.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
            optimizer.step()
        with torch.no_grad():
            for each, old in zip(parameters, before, strict=True):
                each.grad = None
                if not each.isfinite().all():
                    each.copy_(old)


def match_attention(
    model: DiffusionModel,
    teacher: Teacher,
    dataset: Dataset,
    config: TrainConfig,
    trials: Sequence[TrainableEmbedding],
    tell: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> None:
    """Fit the vectors of all trials. `tell` is called if memory is reduced, or if the model's layers cannot be read."""
    count = min(-(-SAMPLES // config.batch_size), config.last_step)
    batches = [each.on(model.device) for each in islice(dataset.batches(config.batch_size), count)]
    record = partial(AttentionMatching.of, model, teacher, batches, config.seed, should_stop)
    matching = with_less_memory(model, record, tell, "use a smaller batch size, width and height")
    if matching is None:
        tell(
            "The weights of the U-Net's attention cannot be read, so the vectors are not fitted to it: more steps "
            "and a higher learning rate, such as 0.005, may be needed."
        )
        return
    for each in trials:
        matching.fit(model, each.vectors, UPDATES_PER_STEP * config.last_step, each.spread, should_stop)
        each.restart_average()


class _Recorder:
    """Records, while the teacher predicts, queries of each layer and what they get, by prompt."""

    def __init__(self, modules: Sequence[CrossAttention], seed: int) -> None:
        self._modules, self._generator = modules, torch.Generator().manual_seed(seed)
        self._weights: dict[tuple[int, str], tuple[Tensor, Tensor | None]] = {}
        self._outputs: dict[tuple[int, str], Tensor] = {}
        self.records: dict[str, list[list[tuple[Tensor, Tensor]]]] = {}  # by prompt and layer: queries, and what they get

    def record(self, model: DiffusionModel, teacher: Teacher, batch: Batch) -> None:
        """Record the teacher's prediction for a batch."""
        noisy_latents = add_noise(batch.latents, batch.noise, model.alphas_cumprod[batch.timesteps])  # (B, C, H, W)
        with ExitStack() as hooks:
            for number, layer in enumerate(self._modules):
                for part in ("query", "key", "value"):
                    hook = getattr(layer, part).register_forward_hook(self._keeping((number, part)))
                    hooks.callback(hook.remove)
            teacher(model, noisy_latents, batch)
        for number, layer in enumerate(self._modules):
            query, key, value = (self._outputs[number, part].float() for part in ("query", "key", "value"))
            for row, prompt in enumerate(batch.prompts):
                chosen = torch.randperm(query.shape[1], generator=self._generator)[:POSITIONS]
                queries = query[row, chosen.to(query.device)]  # (POSITIONS, I)
                wanted = attend(queries, key[row], value[row], layer.heads)
                layers = self.records.setdefault(prompt, [[] for _ in self._modules])
                layers[number].append((queries, wanted))
        self._outputs.clear()

    def layers(self) -> list[_Layer]:
        """The layers' weights as they computed; none if some are not plain matrices."""
        plain = all(weight.ndim == 2 and weight.is_floating_point() for weight, _ in self._weights.values())
        if not plain or len(self._weights) < 2 * len(self._modules):
            return []
        return [
            _Layer(self._weights[number, "key"], self._weights[number, "value"], each.heads)
            for number, each in enumerate(self._modules)
        ]

    def _keeping(self, key: tuple[int, str]) -> Callable[..., None]:
        """A forward hook: weights are read here, since offloaded ones are there only now."""

        def keep(module: Any, _inputs: object, output: Tensor) -> None:
            self._outputs[key] = output.detach()
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            if key[1] != "query" and key not in self._weights and weight is not None:
                self._weights[key] = _copied(weight, output), None if bias is None else _copied(bias, output)

        return keep


def _copied(weight: Tensor, output: Tensor) -> Tensor:
    return weight.detach().to(output.device, copy=True)


def _goal(
    model: DiffusionModel,
    layers: Sequence[_Layer],
    teacher: Teacher,
    prompt: str,
    records: Sequence[Sequence[tuple[Tensor, Tensor]]],
) -> _Goal:
    """What was recorded for a prompt, and how far no text is from it."""
    queries = [torch.cat([each for each, _ in layer]) for layer in records]  # (N, I) of each layer
    wanted = [torch.cat([each for _, each in layer]) for layer in records]
    empty = model.encode_prompts([teacher.without_name(prompt)], {})
    scales = [
        _distance(layer(asked, empty.hidden[0]), answer)
        for layer, asked, answer in zip(layers, queries, wanted, strict=True)
    ]
    pooled = model.encode_prompts([teacher.in_full(prompt)], {}).pooled
    if empty.pooled is None or pooled is None:
        return _Goal(queries, wanted, scales, None, None)
    return _Goal(queries, wanted, scales, pooled.float(), _distance(empty.pooled.float(), pooled.float()))


def _distance(found: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared distance; not much smaller than what is wanted, so that one can divide by it."""
    return torch.maximum(F.mse_loss(found, wanted), 1e-4 * wanted.square().mean() + 1e-12)


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Attention of queries (N, I) to keys and values (T, I): (N, I)."""
    query, key, value = (each.view(len(each), heads, -1).transpose(0, 1) for each in (queries, keys, values))
    return F.scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten(1)  # of (heads, N, I / heads)
