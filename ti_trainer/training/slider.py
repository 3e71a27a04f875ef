"""How far the weights of a slider move the model's predictions between its two prompts.

B batch, C latent channels, H W latent height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ti_trainer.data.dataset import Item
from ti_trainer.data.prompts import NAME, weighted
from ti_trainer.functional.objective import add_noise
from ti_trainer.model import DiffusionModel, Vectors
from ti_trainer.training.evaluation import NUM_TIMESTEPS, fixed_batches
from ti_trainer.training.step import encode_distinct
from ti_trainer.training.teacher import Teacher

WEIGHTS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # of a slider's name; 0: without it
WEAK = 0.25  # of the way: on the embedded model, sides that work reach 34% to 89%, one that does not 0%


def at_weight(line: str, teacher: Teacher, weight: float) -> str:
    """A line of a template with the slider at a weight; 0: without it."""
    prompt = line.replace(NAME, weighted(teacher.name, weight))
    return prompt if weight else teacher.without_name(prompt)


@torch.no_grad()
def slider_positions(
    model: DiffusionModel,
    items: Sequence[Item],
    lines: Sequence[str],
    embeddings: Mapping[str, Vectors],
    teacher: Teacher,
    at_once: int = NUM_TIMESTEPS,
) -> dict[float, float]:
    """Where each of WEIGHTS brings the prediction: 1 is that of the teacher's prompt, -1 that of its opposite.

    Predictions are projected on the line through the two. Measured on the noise of the validation loss, which training does
    not use, with one line of the template for each image.
    """
    dots, length = dict.fromkeys(WEIGHTS, 0.0), 0.0
    for batch in fixed_batches(items, lines, len(model.alphas_cumprod), at_once=at_once):
        noisy_latents = add_noise(batch.latents, batch.noise, model.alphas_cumprod[batch.timesteps])  # (B, C, H, W)
        at = {weight: [at_weight(line, teacher, weight) for line in batch.prompts] for weight in WEIGHTS}
        ends = [replace(batch, prompts=tuple(at[weight])) for weight in (1, -1)]
        prompt, opposite = (teacher(model, noisy_latents, each) for each in ends)
        middle, half = (prompt + opposite) / 2, (prompt - opposite) / 2  # (B, C, H, W)
        length += half.square().sum().item()
        for weight, prompts in at.items():
            cond = encode_distinct(model, prompts, embeddings)
            found = model.predict(noisy_latents, batch.timesteps, cond, batch.images).float()
            dots[weight] += ((found - middle) * half).sum().item()
    return {weight: dot / length if length else 0.0 for weight, dot in dots.items()}


def about_slider(positions: Mapping[float, float], prompt: str, opposite: str) -> list[str]:
    """`slider_positions` as sentences."""
    reached = {prompt: (1, positions[1]), opposite: (-1, -positions[-1])}
    ways = [f"weight {weight} reaches {max(0, way):.0%} of the way to {text!r}" for text, (weight, way) in reached.items()]
    found = [f"From the middle between the two prompts, {' and '.join(ways)}, on noise that is not trained on."]
    weak = [(weight, text) for text, (weight, way) in reached.items() if way < WEAK]
    found += [f"Weight {weight} hardly moves images towards {text!r}: compare the images." for weight, text in weak]
    rising = _rising(positions)
    if len(rising) == 1:
        found.append("The effect does not rise with the weight.")
    elif len(rising) < len(positions):
        found.append(f"The effect rises with the weight from {rising[0]:g} to {rising[-1]:g} only.")
    return found


def _rising(positions: Mapping[float, float]) -> list[float]:
    """The most weights in a row with rising positions."""
    rows: list[list[float]] = []
    for weight in sorted(positions):
        if rows and positions[weight] > positions[rows[-1][-1]]:
            rows[-1].append(weight)
        else:
            rows.append([weight])
    return max(rows, key=len)
