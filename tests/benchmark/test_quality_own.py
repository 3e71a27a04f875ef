"""An embedding of the user's own model: losses, and similarities by a CLIP or DINO folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model

from ti_trainer import tiny_model
from ti_trainer.__main__ import main
from ti_trainer.benchmark.quality_own import read_prompts, scores
from ti_trainer.errors import ConfigError
from ti_trainer.host import GenerationRequest
from ti_trainer.workbench.similarity import Similarity

SIDE = 32


def clip(folder: Path) -> Path:
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 8,
    }
    vision = {**text, "image_size": SIDE, "patch_size": 8}
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    CLIPTokenizer.from_pretrained(tiny_model.MODEL / "tokenizer").save_pretrained(folder)
    return with_format(folder)


def dino(folder: Path) -> Path:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8}
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        Dinov2Model(Dinov2Config(**small)).save_pretrained(folder)
    return with_format(folder)


def with_format(folder: Path) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": SIDE}}))
    return folder


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("make", [clip, dino])
def test_images_are_most_similar_to_themselves(make: object, tmp_path: Path) -> None:
    similarity = Similarity.load(make(tmp_path), torch.device("cpu"))
    found = similarity.of_images([noise(40, 32), noise(32, 50, 1), Image.new("RGB", (32, 32), "red")])
    cosines = found @ found.T
    assert torch.allclose(cosines.diagonal(), torch.ones(3), atol=1e-5)
    assert (cosines - torch.eye(3)).max() < 0.99999


def test_images_are_prepared_as_clips_processor_does(tmp_path: Path) -> None:
    """A square image of the right size only has to be normalized."""
    similarity = Similarity.load(clip(tmp_path), torch.device("cpu"))
    image = noise(SIDE, SIDE)
    pixels = (torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1) / 255 - similarity.mean) / similarity.std
    assert torch.allclose(similarity._pixels(image)[0], pixels, atol=1e-5)


def test_only_clip_reads_texts(tmp_path: Path) -> None:
    similarity = Similarity.load(clip(tmp_path / "clip"), torch.device("cpu"))
    found = similarity.of_texts(["a star", "a heart on grass"])
    assert found.norm(dim=1).tolist() == pytest.approx([1, 1])
    with pytest.raises(ConfigError, match="no text encoder"):
        Similarity.load(dino(tmp_path / "dino"), torch.device("cpu")).of_texts(["a star"])


def test_a_folder_that_is_no_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        Similarity.load(tmp_path, torch.device("cpu"))
    assert refused.value.option == "similarity"
    (clip(tmp_path) / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ConfigError, match="cannot be used"):
        Similarity.load(tmp_path, torch.device("cpu"))


@pytest.mark.parametrize("text", ["", "a photo\n", "a photo of [name]\na photo"])
def test_prompts_need_a_place_for_the_word(text: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(text)
    with pytest.raises(ConfigError, match=r"\[name\]"):
        read_prompts(tmp_path / "prompts.txt")


def test_brackets_of_an_init_text_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    noise(32, 32).save(tmp_path / "images" / "1.png")
    asked: list[str] = []

    def generate(request: GenerationRequest) -> Image.Image:
        asked.append(request.prompt)
        return noise(32, 32)

    similarity = Similarity.load(dino(tmp_path / "dino"), torch.device("cpu"))
    generates, names = dict.fromkeys(("word", "init_text"), generate), {"word": "x", "init_text": "star (red)"}
    scores(similarity, generates, names, ["a [name]"], tmp_path / "images", 1, GenerationRequest(""))
    assert asked == ["a x", r"a star \(red\)"]


def test_the_command_measures_an_embedding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, prompts = tmp_path / "embeddings", tmp_path / "prompts.txt"
    prompts.write_text("a picture of a [name] on grass\na picture of a [name] at night\n")
    assert main(["create", "thing-1", "--init-text", "star", "--embeddings-dir", str(folder)]) == 0
    capsys.readouterr()
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted(tiny_model.DEMO.glob("*.png"))[:2]:
        shutil.copy(path, images)
    command = ["quality", "thing-1", "--images", str(images), "--embeddings-dir", str(folder), "--samples", "1"]
    command += ["--prompts", str(prompts), "--similarity"]
    assert main([*command, str(clip(tmp_path / "clip")), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert set(facts["loss"]) == {"word", "init_text", "no_word"}
    assert set(facts["similarity"]) == {"image_image", "image_text"}
    for found in facts["similarity"].values():
        assert found["difference"]["mean"] == pytest.approx(found["word"]["mean"] - found["init_text"]["mean"])
        assert -1 <= found["word"]["mean"] <= 1
    assert main([*command, str(dino(tmp_path / "dino"))]) == 0
    table = capsys.readouterr().out
    assert "Similarity to the images: embedding" in table
    assert "Similarity to the prompts" not in table, "a DINO reads no texts"


@pytest.mark.parametrize(
    "given",
    [
        ["x-word"],
        ["--images", "x"],
        ["x-word", "--images", "x", "--prompts", "y"],
        ["--prompts", "x", "--similarity", "y"],  # would train hundreds of embeddings
        ["x-word", "--images", "x", "--steps", "3"],
    ],
)
def test_half_a_question_is_refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quality", *given]) == 1
    assert "--images" in (error := capsys.readouterr().err) or "--similarity" in error


def test_results_that_do_not_exist_make_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quality", "--only-table", "--results", str(tmp_path / "none")]) == 1
    assert "no result of these runs" in capsys.readouterr().err
