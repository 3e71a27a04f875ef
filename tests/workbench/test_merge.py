"""Merging embeddings: names, text, where the result comes from, its preview and its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import D, TinyHost
from PIL import Image

from ti_trainer import formats
from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError, ModelError
from ti_trainer.host import GenerationRequest
from ti_trainer.runs.suggestions import is_trained
from ti_trainer.training.vocabulary import Vocabulary
from ti_trainer.workbench.expression import ExpressionError, parse
from ti_trainer.workbench.merge import (
    METHODS,
    UNNAMED,
    Names,
    expression_of,
    merge,
    norms_of,
    save,
    weighted_text,
    with_and_without,
    without_name,
)


def vectors(count: int, seed: int = 0, **widths: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {e: torch.randn(count, width, generator=generator) for e, width in (widths or {"clip_l": D}).items()}


@dataclass
class SeeingHost(TinyHost):
    """Keeps what it was asked to generate."""

    asked: list[tuple[GenerationRequest, dict[str, object]]] = field(default_factory=list)

    def generate(self, model: object, request: GenerationRequest, embeddings: Mapping[str, object]) -> Image.Image:
        self.asked.append((request, dict(embeddings)))
        return Image.new("RGB", (16, 16))


@pytest.fixture
def host(tmp_path: Path) -> SeeingHost:
    host = SeeingHost(tmp_path)
    for number, name in enumerate(("red", "my-cat", "Blue")):
        formats.write(Embedding(name, vectors(2, number), 100, "tiny", "abc"), host.embeddings_dir / f"{name}.safetensors")
    xl = {"clip_l": 768, "clip_g": 1280}
    for number, name in enumerate(("xl1", "xl2")):
        formats.write(
            Embedding(name, vectors(3, number, **xl), 5, f"{name}-model"), host.embeddings_dir / f"sub/{name}.safetensors"
        )
    return host


def merged(host: TinyHost, expression: str, **given: Path) -> object:
    return merge(expression, Names(host.embeddings_dir, given), host.open_model)


def no_model() -> None:
    raise ModelError("the model was opened")


def test_names_are_found_in_any_case_and_given_files_come_first(host: SeeingHost, tmp_path: Path) -> None:
    found = merge('0.5 * RED + 0.5 * "My-Cat"', Names(host.embeddings_dir), no_model)
    wanted = 0.5 * vectors(2, 0)["clip_l"].double() + 0.5 * vectors(2, 1)["clip_l"].double()
    assert torch.equal(found.embedding.vectors["clip_l"], wanted.float())
    assert (found.embedding.step, found.embedding.checkpoint, found.uses_model) == (0, "tiny", False)
    assert found.embedding.info["merged_from"] == "RED, My-Cat"
    formats.write(Embedding("other", vectors(2, 9)), tmp_path / "other.pt")
    found = merged(host, "red", red=tmp_path / "other.pt")
    assert torch.equal(found.embedding.vectors["clip_l"], vectors(2, 9)["clip_l"])


def test_unknown_names_say_which_are_meant(host: SeeingHost, tmp_path: Path) -> None:
    with pytest.raises(ExpressionError, match='did you mean "my-cat"'):
        merged(host, "my - cat")
    with pytest.raises(ExpressionError, match="did you mean Blue"):
        merged(host, "bleu")
    with pytest.raises(ExpressionError, match=r"\(found: none\)"):
        merge("qqq", Names(tmp_path / "nowhere"), no_model)
    (host.embeddings_dir / "bad.pt").write_bytes(b"<html>")
    with pytest.raises(ExpressionError, match=r"character 7: bad.pt cannot be read.*web page"):
        merged(host, "red + bad")
    with pytest.raises(ConfigError, match="Expression: empty"):
        merged(host, "  ")


def test_sdxl_is_computed_for_each_encoder_into_one_file(host: SeeingHost) -> None:
    found = merged(host, "cat(xl1[0], normalize(xl2, 1))")
    assert found.about == "4 vectors for SDXL (clip_l 768, clip_g 1280)."
    assert found.embedding.checkpoint is None, "of two models"
    for encoder, each in found.embedding.arrays.items():
        np.testing.assert_allclose(np.linalg.norm(each[1:], axis=1), 1, rtol=1e-5)
        np.testing.assert_array_equal(each[0], vectors(3, 0, clip_l=768, clip_g=1280)[encoder][0])
    path = save(host, found, "my-xl", overwrite=False, warn=lambda _: None)
    assert set(formats.read(path).widths) == {"clip_l", "clip_g"}


def test_text_is_weighted_and_tokens_are_those_of_the_model(host: SeeingHost) -> None:
    model = host.model
    found = merged(host, 'text("red hair, (freckles:1.5) [dim]")')
    plain = [model.token_embeddings(each)["clip_l"] for each in ("red hair, ", "freckles", " ", "dim")]
    wanted = torch.cat([plain[0], 1.5 * plain[1], plain[2], plain[3] / 1.1])
    assert torch.allclose(found.embedding.vectors["clip_l"], wanted)
    assert (found.uses_model, found.embedding.checkpoint) == (True, "tiny")
    tokens = merged(host, 'tokens("(red hair)")').embedding.vectors["clip_l"]
    assert torch.equal(tokens, model.token_embeddings("(red hair)")["clip_l"]), "no syntax"
    with pytest.raises(ExpressionError, match="BREAK"):
        merged(host, 'text("a BREAK b")')
    assert len(weighted_text(model, "a b")["clip_l"]) == 2
    norm = Vocabulary.of(model).norms["clip_l"]
    lengths = merged(host, "normalize(red)").embedding.vectors["clip_l"].norm(dim=1)
    assert torch.allclose(lengths, torch.full((2,), norm))


def test_what_a_text_does_not_mean_is_said(host: SeeingHost) -> None:
    assert "my-cat in 'a my-cat' is read as ordinary words" in merged(host, 'text("a my-cat")').warnings[0]
    assert "<lora:x:1> in the text is read as plain text" in merged(host, 'text("a <lora:x:1>")').warnings[0]
    assert merged(host, 'text("a cat")').warnings == ()


def test_the_result_is_saved_with_its_origin_and_never_over_another(host: SeeingHost) -> None:
    found = merged(host, "red  +\n'my-cat'")
    told: list[str] = []
    path = save(host, found, " my-mix ", overwrite=False, warn=told.append)
    again = formats.read(path)
    assert (path.name, again.name, again.step, again.info["expression"]) == (
        "my-mix.safetensors",
        "my-mix",
        0,
        "red + 'my-cat'",
    )
    assert is_trained(host, "my-mix"), "Quick train does not replace it"
    for name in ("my-mix", "MY-MIX", "red"):
        with pytest.raises(ConfigError, match="choose another name, or overwrite"):
            save(host, found, name, overwrite=False, warn=told.append)
    for name in ("", "a/b", "..", "CON", "x.pt", "a\nb"):
        with pytest.raises(ConfigError):
            save(host, found, name, overwrite=True, warn=told.append)
    assert told == []
    formats.write(Embedding("old", vectors(1)), host.embeddings_dir / "old.pt")
    assert save(host, found, "old", overwrite=True, warn=told.append).name == "old.pt"
    assert "cannot hold a note of the expression" in told[-1]
    save(host, merged(host, "xl1 + xl2"), "for-sdxl", overwrite=False, warn=told.append)
    assert "cannot use for-sdxl, since it is for SDXL models" in told[-1]
    with pytest.raises(ConfigError, match="80 vectors, but a prompt has room for 75"):
        save(host, merged(host, "pad(red, 80)"), "long", overwrite=False, warn=told.append)


def test_the_preview_is_without_and_with_it_at_one_seed(host: SeeingHost) -> None:
    found = merged(host, "red + Blue").embedding
    request = GenerationRequest("a photo of [name], day", "grey, ([name]:0.5)", seed=9)
    labels = [label for label, _ in with_and_without(host, host.model, found, request)]
    assert labels == ["without", "with it"]
    (before, others), (after, known) = host.asked
    assert (before.prompt, before.negative_prompt, before.seed) == ("a photo of, day", "grey", 9)
    assert (after.prompt, after.negative_prompt, after.seed) == (f"a photo of {UNNAMED}, day", f"grey, ({UNNAMED}:0.5)", 9)
    assert set(others) == {"red", "my-cat", "Blue"}
    assert torch.equal(known[UNNAMED]["clip_l"], found.vectors["clip_l"])
    for prompt, message in (("a photo", "expected \\[name\\]"), ("[name]", "is for SDXL")):
        with pytest.raises(ConfigError, match=message):
            list(with_and_without(host, host.model, merged(host, "xl1").embedding, GenerationRequest(prompt)))
    assert without_name("[name]") == ""


def test_lengths_are_compared_with_the_vocabulary_of_a_model_that_fits(host: SeeingHost) -> None:
    ((label, text),) = norms_of(merged(host, "red").embedding, host.model)
    assert label == "Lengths, clip_l"
    assert "usual: " in text
    assert all("usual" not in text for _, text in norms_of(merged(host, "xl1").embedding, host.model))


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("Weighted sum", '0.5 * red - 2 * "my-cat" + Blue'),
        ("Average", 'mean(red, "my-cat", Blue)'),
        ("Concatenate", 'cat(0.5 * red, -2 * "my-cat", Blue)'),
    ],
)
def test_the_form_writes_expressions(host: SeeingHost, method: str, wanted: str) -> None:
    chosen = [("red", 0.5), ("my-cat", -2.0), ("Blue", 1.0)]
    assert expression_of(method, chosen) == wanted
    assert merged(host, wanted)
    assert expression_of("Interpolate", chosen[:2], 0.25) == 'lerp(red, "my-cat", 0.25)'
    assert expression_of("Interpolate, spherical", chosen[:2], 0.25) == 'slerp(red, "my-cat", 0.25)'
    assert expression_of("Difference", chosen[:2]) == '0.5 * red + 2 * "my-cat"'
    for each in METHODS:
        with pytest.raises(ConfigError, match="found 0 embeddings"):
            expression_of(each, [])


@pytest.mark.parametrize("name", ['a"b', "a\\b", "\\", 'x\\"', "é-1", "a'b", "[0]", "cat("])
def test_any_name_can_be_written(name: str) -> None:
    assert parse(expression_of("Weighted sum", [(name, 1.0)])).name == name
