"""Check what was entered for a comparison, and read its lists of seeds and weights."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from ti_trainer.data.prompts import MOST_LINE, NAME
from ti_trainer.errors import ConfigError
from ti_trainer.functional.numbers import number
from ti_trainer.host import GenerationRequest
from ti_trainer.prompts import CHUNK
from ti_trainer.wording import counted
from ti_trainer.workbench.candidates import Candidate

MOST_IMAGES = 300
MOST_PX = 4096  # width and height
MOST_SEED = 2**32 - 1
MOST_WEIGHT, LEAST_WEIGHT = 10.0, 0.001  # below, a weight would be written with an exponent


def prompts_of(text: str) -> tuple[str, ...]:
    """The prompts of a text, one a line, each once."""
    return tuple(dict.fromkeys(filter(None, map(str.strip, (text or "").splitlines()))))


def seeds_of(text: str) -> tuple[int, ...]:
    """Seeds such as '1, 2, 5-8', each once; ConfigError for anything else."""
    found: list[int] = []
    for part in _parts(text):
        ends = re.fullmatch(r"(\d+)\s*-\s*(\d+)", part)
        try:
            first, last = map(int, ends.groups()) if ends else (int(number(part, int)),) * 2
        except ValueError as error:
            message = f"Seeds: {error}"
            raise ConfigError(message, "seeds") from error
        if not 0 <= first <= last <= MOST_SEED or last - first >= MOST_IMAGES:
            message = f"Seeds: found {part}, expected numbers from 0 to {MOST_SEED}, such as 1, 2 or 1-4."
            raise ConfigError(message, "seeds")
        found += range(first, last + 1)
    return tuple(dict.fromkeys(found))


def weights_of(text: str) -> tuple[float, ...]:
    """Weights such as '1, 0.8', each once; ConfigError for anything else."""
    try:
        return tuple(dict.fromkeys(float(number(part)) for part in _parts(text)))
    except ValueError as error:
        message = f"Weights: {error}"
        raise ConfigError(message, "weights") from error


def _parts(text: str) -> list[str]:
    return [part for part in re.split(r"[;\s]*,[;\s]*|;\s*|(?<![-\s])\s+(?![-\s])", (text or "").strip()) if part]


def check(
    candidates: Sequence[Candidate],
    prompts: Sequence[str],
    seeds: Sequence[int],
    weights: Sequence[float],
    request: GenerationRequest,
    per_image_s: float | None = None,
) -> None:
    """Raise ConfigError, with the name of the field in `option`, for what cannot be compared.

    `per_image_s`: how long an image took in an earlier comparison.
    """
    if not candidates:
        message = "Copies: found none, expected at least one copy of a run, or an embedding."
        raise ConfigError(message, "copies")
    long = next((each for each in candidates if each.embedding.num_vectors > CHUNK), None)
    if long is not None:
        message = f"Copies: {long.label} has {long.embedding.num_vectors} vectors; a prompt has room for {CHUNK}."
        raise ConfigError(message, "copies")
    if not prompts:
        message = f"Prompts: found none, expected one a line, such as 'a photo of {NAME}'."
        raise ConfigError(message, "prompts")
    for prompt in prompts:
        if len(prompt) > MOST_LINE:
            message = f"Prompts: found one of {len(prompt)} characters, expected at most {MOST_LINE}."
            raise ConfigError(message, "prompts")
        if NAME not in prompt and NAME not in request.negative_prompt:
            message = (
                f"Prompts: found {prompt!r} without {NAME}, so every copy would give the same image. Put {NAME} where the "
                "embedding is to be, there or in the negative prompt."
            )
            raise ConfigError(message, "prompts")
    _check_numbers(seeds, weights)
    _check_request(request)
    _check_size(len(candidates), len(prompts), len(seeds), len(weights), per_image_s)


def about_size(copies: int, prompts: int, seeds: int, weights: int, per_image_s: float | None = None) -> str:
    """How many images that makes, and how long they take, where that is known."""
    counts = ((copies, "copies"), (prompts, "prompts"), (seeds, "seeds"), (weights, "weights"))
    names = {"copies": "copy", "prompts": "prompt", "seeds": "seed", "weights": "weight"}
    product = " x ".join(f"{n} {names[what] if n == 1 else what}" for n, what in counts if n != 1 or what != "weights")
    total = copies * prompts * seeds * weights
    took = "" if per_image_s is None else f", about {_duration(total * per_image_s)} at {per_image_s:.1f} s an image"
    return f"{product}: {counted(total, 'image')}{took}"


def _check_numbers(seeds: Sequence[int], weights: Sequence[float]) -> None:
    if not seeds:
        message = "Seeds: found none, expected at least one, such as 1, 2."
        raise ConfigError(message, "seeds")
    wrong = next((each for each in seeds if not 0 <= each <= MOST_SEED), None)
    if wrong is not None:
        message = f"Seeds: found {wrong}, expected numbers from 0 to {MOST_SEED}."
        raise ConfigError(message, "seeds")
    if not weights:
        message = "Weights: found none, expected at least one; 1 is the embedding as it is."
        raise ConfigError(message, "weights")
    for weight in weights:
        if not math.isfinite(weight) or abs(weight) > MOST_WEIGHT or 0 < abs(weight) < LEAST_WEIGHT:
            message = f"Weights: found {weight:g}, expected numbers from -{MOST_WEIGHT:g} to {MOST_WEIGHT:g}, such as 0.8."
            raise ConfigError(message, "weights")


def _check_request(request: GenerationRequest) -> None:
    for label, option, value, low, high in (
        ("Sampling steps", "steps", request.steps, 1, 1000),
        ("CFG scale", "cfg_scale", request.cfg_scale, 1, 30),
    ):
        if not low <= value <= high:
            message = f"{label}: found {value}, expected at least {low} and at most {high}."
            raise ConfigError(message, option)
    for label, option, value in (("Width", "width", request.width), ("Height", "height", request.height)):
        if value % 8 or not 0 <= value <= MOST_PX:
            message = f"{label}: found {value}, expected a multiple of 8 up to {MOST_PX}, or 0 for the model's own size."
            raise ConfigError(message, option)


def _check_size(copies: int, prompts: int, seeds: int, weights: int, per_image_s: float | None) -> None:
    if copies * prompts * seeds * weights > MOST_IMAGES:
        size = about_size(copies, prompts, seeds, weights, per_image_s)
        message = f"{size}; expected at most {MOST_IMAGES}. Choose fewer copies, prompts, seeds or weights."
        raise ConfigError(message, "size")


def _duration(seconds: float) -> str:
    """Roughly, such as '40 s', '12 min' or '3.5 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
