"""distill on the embedded model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from loras import pair, save_kohya
from PIL import Image

PROMPT = "a picture of a big red star on sand"
QUICK = ("--max-steps", 3, "--preview-every", 0, "--save-every", 0, "--preview-sampling-steps", 2)


def test_an_embedding_is_made_of_a_prompt_without_images(
    cli: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done = cli("distill", "moon", "--prompt", PROMPT, *QUICK)
    assert done.code == 0, done.err
    assert "vectors: 5, from 'big red star sand'" in done.out
    assert (done.err + caplog.text).count("contains the word moon") == 1
    assert "of the gap between no text and the prompt" in done.out
    assert (tmp_path / "embeddings" / "moon.safetensors").is_file()
    generated = sorted(tmp_path.rglob("generated/moon-*/*.png"))
    assert [each.name for each in generated] == [f"01-{seed}.png" for seed in range(1, 5)]
    (comparison,) = tmp_path.rglob("comparison.png")
    assert str(comparison.name) in done.out
    with Image.open(comparison) as image:
        assert image.width > 3 * image.height / 2, "four images beside each other, in two rows"
    again = cli("train", "moon", "--images", generated[0].parent, "--resume", "--max-steps", 5)
    assert again.code == 0, again.err
    assert "of the gap" in again.out


def test_an_embedding_is_made_of_a_lora(cli: Callable, tmp_path: Path) -> None:
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v"
    layers = {layer: pair((128, 64), 1), "lora_unet_nowhere": pair((4, 4), 1)}
    file = save_kohya(tmp_path / "loras" / "ink.safetensors", layers)
    done = cli("distill", "my-ink", "--lora", "loras/ink.safetensors", "--lora-weight", 0.8, *QUICK)
    assert done.code == 0, done.err
    assert "vectors: 8, from '*'" in done.out
    assert "1 of the 2 layers of the LoRA ink, such as nowhere" in done.out + done.err
    assert "between the model without and with the LoRA" in done.out or "farther from the LoRA's" in done.out
    (settings,) = tmp_path.rglob("settings.json")
    options = json.loads(settings.read_text())["train"]
    assert (options["teacher_lora"], options["teacher_lora_weight"]) == (str(file), 0.8)
    (comparison,) = tmp_path.rglob("comparison.png")
    with Image.open(comparison) as image:
        assert image.height > image.width * 0.7, "three rows: the LoRA, the embedding, neither"


def test_a_lora_of_another_model_is_refused_before_anything_is_created(cli: Callable, tmp_path: Path) -> None:
    file = save_kohya(tmp_path / "other.safetensors", {"lora_unet_double_blocks_0_img_attn_qkv": pair((4, 4), 1)})
    for path, expected in ((file, "none of the 1 layer of other"), ("nowhere.safetensors", "does not exist")):
        done = cli("distill", "new", "--lora", path, *QUICK)
        assert (done.code, len(done.errors)) == (1, 1)
        assert expected in done.errors[0]
    assert cli("distill", "new", *QUICK).errors == [
        "Error: Prompt: found an empty text, expected the prompt that the embedding is to mean, or a LoRA."
    ]
    assert "without --lora" in cli("distill", "new", "--prompt", "a star", "--lora-weight", 0.5, *QUICK).errors[0]
    assert not (tmp_path / "embeddings" / "new.safetensors").exists()
    assert not list(tmp_path.rglob("generated"))


def test_a_slider_is_trained_in_contexts(cli: Callable, tmp_path: Path) -> None:
    contexts = ("--context", "a picture of a [name] star", "--context", "a picture of a [name] ring on sand")
    done = cli("distill", "redness", "--prompt", "red", "--opposite", "blue", *contexts, *QUICK)
    assert done.code == 0, done.err
    (folder,) = tmp_path.rglob("generated/redness-*")
    assert len(list(folder.glob("*.png"))) == 4, "each context with red and with blue"
    assert (folder / "contexts.txt").read_text().splitlines() == list(contexts[1::2])
    (comparison,) = tmp_path.rglob("comparison.png")
    with Image.open(comparison) as image:
        assert image.width > 2 * image.height, "five weights beside each other, in two rows"
    again = cli("train", "redness", "--images", folder, "--resume", "--max-steps", 4)
    assert again.code == 0, again.err
    reaches = "From the middle between the two prompts, weight 1 reaches"
    assert reaches in done.out
    assert reaches in again.out
    measured = cli("evaluate", "redness", "--images", folder, "--prompt", "red", "--opposite", "blue", *contexts)
    assert reaches in measured.out
    assert "Measured without" not in measured.err


def test_a_companion_set_is_made_in_one_run(cli: Callable, tmp_path: Path, images: Path) -> None:
    prompts = ("--prompt", "a big red star", "--negative-prompt", "small, blue, striped")
    given = (*prompts, "--preview-prompt", "a star, [name]", "--images", images)
    done = cli("distill", "my-look", *given, *QUICK)
    assert done.code == 0, done.err
    for name, start in (("my-look", "vectors: 2, from 'big red star'"), ("my-look-neg", "from 'small blue striped'")):
        assert f"embeddings/{name}.safetensors" in done.out.replace("\\", "/")
        assert start in done.out
    assert "my-look-neg in the negative prompt by" in done.out
    assert cli("distill", "my-look", *given, *QUICK).code == 1, "both names are taken"
    (tmp_path / "embeddings" / "my-look.safetensors").unlink()
    assert "'my-look-neg' already" in cli("distill", "my-look", *given, *QUICK).errors[0]
    assert not (tmp_path / "embeddings" / "my-look.safetensors").exists()


def test_an_embedding_for_the_negative_prompt_is_shown_with_and_without_it(cli: Callable, tmp_path: Path) -> None:
    arguments = ("distill", "unwanted", "--prompt", "red, striped", "--negative-word")
    refused = cli(*arguments, *QUICK)
    expected = "expected a prompt without [name] to try the embedding with."
    assert refused.errors == [f"Error: Preview prompt: found '[name]', {expected}"]
    done = cli(*arguments, "--preview-prompt", "a picture of a star", *QUICK)
    assert done.code == 0, done.err
    assert "In the negative prompt, it changes images by" in done.out
    (settings,) = tmp_path.rglob("settings.json")
    measured = json.loads(settings.read_text())["measured"]
    assert 0 < measured["negative_effect"] < 10
    assert "gap_closed" in measured


def test_a_context_without_the_name_is_refused(cli: Callable, tmp_path: Path) -> None:
    done = cli("distill", "new", "--prompt", PROMPT, "--context", "a picture of a star", *QUICK)
    assert done.errors == [
        "Error: Contexts: found 'a picture of a star', expected a prompt with [name], such as 'a picture of a cat, [name]'."
    ]
    assert not (tmp_path / "embeddings" / "new.safetensors").exists()


def test_errors_are_found_before_anything_is_created(cli: Callable, tmp_path: Path) -> None:
    assert cli("create", "taken").code == 0
    missing = ("new", "--prompt", PROMPT, "--images", "nowhere"), ("new", "--prompt", PROMPT, "--template", "nowhere")
    for arguments in (("taken", "--prompt", PROMPT), ("new", "--prompt", " "), *missing):
        done = cli("distill", *arguments, *QUICK)
        assert (done.code, len(done.errors)) == (1, 1)
    assert not list(tmp_path.rglob("generated"))
    assert not (tmp_path / "embeddings" / "new.safetensors").exists()
