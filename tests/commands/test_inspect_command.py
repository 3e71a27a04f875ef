"""`inspect`: embeddings, runs and prompts, for people and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ti_trainer import formats
from ti_trainer.__main__ import main
from ti_trainer.embedding import Embedding
from ti_trainer.runs.run_folder import Run

INTEROP = Path(__file__).parents[1] / "fixtures" / "interop"


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    def run(*words: object) -> tuple[int, str, str]:
        code = main(["inspect", *map(str, words), "--embeddings-dir", str(tmp_path / "embeddings")])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def star(embedded_model, tmp_path: Path) -> Path:
    path = tmp_path / "embeddings" / "my-star.safetensors"
    vectors = embedded_model.token_embeddings("star red")
    formats.write(Embedding("my-star", vectors, 7), path)
    formats.write(Embedding("other", {"clip_l": vectors["clip_l"][1:] * 2}, 7), path.with_name("other.pt"))
    return path


def test_nearest_tokens_and_embeddings_of_each_vector(inspect, star: Path) -> None:
    code, said, _ = inspect(star, "--nearest", 2)
    assert code == 0
    lines = said.splitlines()
    assert "my-star, embedded, vectors clip_l 2 x 64" in lines[0]
    assert "norms in the vocabulary of embedded" in lines[2]
    assert lines[4].startswith("    tokens: star #2774 1.000, ") or "tokens: star #" in lines[4]
    assert "embeddings: other[1] 1.000" in said
    code, said, _ = inspect(star, "--json")
    facts = json.loads(said)
    second = facts["encoders"]["clip_l"]["vectors"][1]
    assert (second["tokens"][0]["token"], second["embeddings"][0]["name"]) == ("red</w>", "other")
    assert len(second["tokens"]) == 5
    assert (facts["step"], facts["vectors"]) == (7, {"clip_l": [2, 64]})


def test_without_neighbours_no_model_is_read(inspect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ti_trainer.hosts.diffusers.loading.load", lambda *_: pytest.fail("it was read"))
    code, said, _ = inspect(INTEROP / "kohya-sdxl.safetensors", "--nearest", 0)
    assert code == 0
    assert "clip_g, width 1280:" in said
    assert "tokens" not in said


def test_a_file_for_other_models_is_told_so(inspect) -> None:
    code, said, _ = inspect(INTEROP / "webui-two.pt")
    assert code == 0
    assert "embedded has no text encoder like this: no nearest tokens" in said


def test_the_drift_of_a_run(inspect, tmp_path: Path) -> None:
    run = Run.create(tmp_path, "cat", {"name": "cat"})
    assert "no copies" in inspect(run.path)[1]
    for step in (10, 20):
        run.write_copy(Embedding("cat", {"clip_l": torch.ones(1, 4) * step}, step))
    assert "step 20: clip_l similarity to the first 1.0000, norm 40" in inspect(run.path)[1]
    copies = json.loads(inspect(run.path, "--json")[1])["copies"]
    assert [each["step"] for each in copies] == [10, 20]


def test_a_prompt_as_tokens(inspect, star: Path) -> None:
    code, said, _ = inspect("--prompt", "a (my-star:1.2) BREAK cat")
    assert code == 0
    assert "chunk 1, 3 of 75 tokens: a #320 | my-star [2 vectors] x 1.2" in said
    assert "chunk 2, 1 of 75 tokens: cat #2368" in said
    assert json.loads(inspect("--prompt", "cat", "--json")[1])["chunks"][0][0]["id"] == 2368


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ((), "nothing to inspect"),
        (("gone.pt",), "gone.pt"),
        ((INTEROP / "card-sd1-reencoded.jpg",), "no embedding can be found"),
        (("x.pt", "--nearest", 1000), "expected 0 to 100"),
    ],
)
def test_what_cannot_be_inspected_is_an_error(words: tuple, answer: str, inspect) -> None:
    code, _, said = inspect(*words)
    assert code == 1
    assert answer in said
