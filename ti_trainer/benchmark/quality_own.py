"""How good an embedding of the user's own model is: similarity of generated images to the user's, and to their prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from ti_trainer.benchmark.quality_table import mean_and_error
from ti_trainer.data.prompts import NAME
from ti_trainer.data.subsets import read_subsets
from ti_trainer.errors import ConfigError
from ti_trainer.host import GenerationRequest
from ti_trainer.prompts import escaped
from ti_trainer.workbench.similarity import Similarity, images_of

Generate = Callable[[GenerationRequest], Image.Image]
Scores = dict[str, dict[str, dict[str, float]]]  # measure -> "word", "init_text", "difference" -> "mean", "se"


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line, each with [name]; ConfigError for anything else."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        message = f"--prompts: {path} cannot be read ({error.strerror}); expected a text file with one prompt a line."
        raise ConfigError(message) from error
    except UnicodeDecodeError as error:
        message = f"--prompts: {path} is not UTF-8 text ({error.reason}): save it as UTF-8."
        raise ConfigError(message) from error
    without = next((line for line in lines if NAME not in line), None)
    if not lines or without is not None:
        found = "found no prompt" if without is None else f"found {without!r}"
        message = f"--prompts: in {path} {found}, expected prompts with {NAME}, such as 'a photo of {NAME} on the beach'."
        raise ConfigError(message)
    return lines


def scores(
    similarity: Similarity,
    generate: Mapping[str, Generate],
    names: Mapping[str, str],
    prompts: Sequence[str],
    dataset: Path,
    samples: int,
    request: GenerationRequest,
) -> Scores:
    """Cosines of `samples` images a prompt, with the user's images and with the prompt, for the word and its init text.

    `generate` and `names` are by "word" and "init_text". The same seeds are used for both, so differences are paired by
    prompt. In the text that images are compared with, the init text stands for the word. Neither is a prompt: brackets in
    them are no weights.
    """
    wanted = similarity.of_images(list(images_of(read_subsets(dataset))))  # (number of images, d)
    by_prompt: dict[str, dict[str, list[float]]] = {}
    for prompt in prompts:
        text = similarity.of_texts([prompt.replace(NAME, names["init_text"])]) if similarity.tokenizer else None
        for key, make in generate.items():
            meant = prompt.replace(NAME, escaped(names[key]))
            made = [make(replace(request, prompt=meant, seed=seed)) for seed in range(samples)]
            found = similarity.of_images(made)  # (samples, d)
            _add(by_prompt, "image_image", key, found @ wanted.T)
            if text is not None:
                _add(by_prompt, "image_text", key, found @ text.T)
    return {measure: _summary(values) for measure, values in by_prompt.items()}


def _add(found: dict[str, dict[str, list[float]]], measure: str, key: str, cosines: torch.Tensor) -> None:
    found.setdefault(measure, {}).setdefault(key, []).append(float(cosines.mean()))


def _summary(values: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    pairs = zip(values["word"], values["init_text"], strict=True)
    values = {**values, "difference": [word - text for word, text in pairs]}
    return {key: mean_and_error(each) for key, each in values.items()}
