"""distill on the embedded model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

PROMPT = "a picture of a big red star on sand"
QUICK = ("--max-steps", 3, "--preview-every", 0, "--save-every", 0)


def test_an_embedding_is_made_of_a_prompt_without_images(cli: Callable, tmp_path: Path) -> None:
    done = cli("distill", "my-scene", "--prompt", PROMPT, *QUICK)
    assert done.code == 0, done.err
    assert "vectors: 5, from 'big red star sand'" in done.out
    assert "of the gap between no text and the prompt" in done.out
    assert (tmp_path / "embeddings" / "my-scene.safetensors").is_file()
    generated = sorted(tmp_path.rglob("generated/my-scene-*/*.png"))
    assert [each.name for each in generated] == [f"01-{seed}.png" for seed in range(1, 5)]
    again = cli("train", "my-scene", "--images", generated[0].parent, "--resume", "--max-steps", 5)
    assert again.code == 0, again.err
    assert "of the gap" in again.out


def test_errors_are_found_before_anything_is_created(cli: Callable, tmp_path: Path) -> None:
    assert cli("create", "taken").code == 0
    missing = ("new", "--prompt", PROMPT, "--images", "nowhere"), ("new", "--prompt", PROMPT, "--template", "nowhere")
    for arguments in (("taken", "--prompt", PROMPT), ("new", "--prompt", " "), *missing):
        done = cli("distill", *arguments, *QUICK)
        assert (done.code, len(done.errors)) == (1, 1)
    assert not list(tmp_path.rglob("generated"))
    assert not (tmp_path / "embeddings" / "new.safetensors").exists()
