"""BLIP with a real, tiny, random network of transformers, whichever version there is."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ti_trainer.captioning import blip
from ti_trainer.captioning.captioners import opened
from ti_trainer.config.preprocessing import PreprocessConfig
from ti_trainer.errors import ConfigError

WORDS = [
    "a",
    "red",
    "blue",
    "cat",
    "dog",
    "on",
    "the",
    "grass",
    "with",
    "green",
    "eyes",
    "and",
    "big",
    "small",
    "hat",
    "sits",
]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "[DEC]", "[ENC]"]
SIZE_PX = 32


@pytest.fixture(scope="module")
def network() -> dict[str, torch.Tensor]:
    """Weights wild enough that images differ."""
    generator = torch.Generator().manual_seed(3)
    from transformers import BlipForConditionalGeneration

    model = BlipForConditionalGeneration(_config())
    for name, each in sorted(model.named_parameters()):
        if each.ndim > 1:
            torch.nn.init.normal_(each, std=0.3, generator=generator)
        if name.endswith("predictions.bias"):
            each.data[: len(VOCABULARY) - len(WORDS) - 2] = -50  # only words are said
            each.data[-2:] = -50
    weights = {name: each.detach().clone() for name, each in model.state_dict().items()}
    weights[blip.HEAD] = weights[blip.WORDS].clone()
    return weights


@pytest.fixture
def folder(tmp_path: Path, network: dict[str, torch.Tensor]) -> Path:
    """As `save_pretrained` and the hub have it."""
    path = tmp_path / "blip"
    _config().save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(VOCABULARY))
    tokenizer = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "bos_token": "[DEC]"}
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    image = {
        "image_processor_type": "BlipImageProcessor",
        "size": {"height": SIZE_PX, "width": SIZE_PX},
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
    }
    (path / "preprocessor_config.json").write_text(json.dumps(image))
    save_file(network, path / "model.safetensors", {"format": "pt"})
    return path


def _config() -> object:
    from transformers import BlipConfig

    ids = {word: number for number, word in enumerate(VOCABULARY)}
    common = {"hidden_size": 32, "intermediate_size": 64, "projection_dim": 16, "num_hidden_layers": 2}
    text = {
        "vocab_size": len(VOCABULARY),
        "encoder_hidden_size": 32,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": ids["[DEC]"],
        "eos_token_id": ids["[SEP]"],
        "sep_token_id": ids["[SEP]"],
        "pad_token_id": ids["[PAD]"],
    }
    vision = {"num_attention_heads": 2, "image_size": SIZE_PX, "patch_size": 8}
    return BlipConfig(text_config={**common, **text}, vision_config={**common, **vision}, image_text_hidden_size=16)


def say(source: Path | str, *colours: str) -> list[str]:
    with opened(PreprocessConfig(captioners="blip", blip_model=str(source)), device="cpu") as caption:
        return [caption(_image(colour)) for colour in colours]


def _image(colour: str) -> Image.Image:
    image = Image.linear_gradient("L").convert("RGB")
    image.paste(colour, (20, 20, 150, 90))
    return image


def test_it_says_something_else_of_another_image_and_always_the_same_of_one(folder: Path) -> None:
    torch.manual_seed(1)
    red, blue = say(folder, "red", "blue")
    torch.manual_seed(2)
    assert say(folder, "blue", "red") == [blue, red]
    assert red != blue


@pytest.mark.parametrize(("wants_to_end", "words"), [(50.0, 23), (-50.0, 47)])
def test_a_sentence_has_24_to_48_tokens(
    folder: Path, network: dict[str, torch.Tensor], wants_to_end: float, words: int
) -> None:
    bias = network["text_decoder.cls.predictions.bias"].clone()
    bias[VOCABULARY.index("[SEP]")] = wants_to_end
    ends = {name: bias.clone() for name in network if name.endswith(("predictions.bias", "predictions.decoder.bias"))}
    save_file({**network, **ends}, folder / "model.safetensors", {"format": "pt"})
    (red,) = say(folder, "red")
    assert set(red.split()) <= set(WORDS)
    assert len(red.split()) == words  # the token at the beginning is none


@pytest.mark.parametrize("lost", [blip.HEAD, blip.WORDS])
def test_weights_that_the_file_has_once_are_used_twice(folder: Path, network: dict[str, torch.Tensor], lost: str) -> None:
    whole = say(folder, "red", "blue")
    save_file({name: each for name, each in network.items() if name != lost}, folder / "model.safetensors", {"format": "pt"})
    assert say(folder, "red", "blue") == whole


def test_a_file_without_some_weights_is_refused(folder: Path, network: dict[str, torch.Tensor]) -> None:
    few = {name: each for name, each in network.items() if "vision_model.encoder.layers.1.mlp" not in name}
    save_file(few, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"4 weights are missing, for example vision_model\.encoder\.layers\.1\.mlp"):
        say(folder)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no model\.safetensors. Other formats are not read") as caught:
        say(folder)
    assert caught.value.option == "blip_model"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_a_damaged_folder_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"cannot be read .*Choose a folder with these files: config\.json"):
        say(folder)


def test_code_that_comes_with_a_model_is_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        content = json.loads((folder / name).read_text())
        classes = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoImageProcessor", "AutoProcessor")
        (folder / name).write_text(json.dumps({**content, "auto_map": dict.fromkeys(classes, "evil.Evil")}))
    with suppress(ConfigError):  # refusing is as good as passing it over
        say(folder, "red")
    assert not (tmp_path / "ran").exists()


def test_a_name_that_cannot_be_downloaded_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="There is no folder 'someone/blip-that-is-not-there', and no model") as caught:
        say("someone/blip-that-is-not-there")
    assert caught.value.option == "blip_model"
    assert "Choose a folder with these files: config.json, " in str(caught.value)


def test_only_what_is_read_is_downloaded(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    import huggingface_hub

    asked = {}

    def download(name: str, allow_patterns: list[str]) -> str:
        asked[name] = allow_patterns
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    expected = say(folder, "red")
    assert asked == {}
    assert say("someone/blip", "red") == expected
    assert asked == {"someone/blip": ["*.json", "*.txt", "model.safetensors"]}


def test_without_transformers_it_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"needs the package transformers .* -m pip install transformers$"):
        say("anything")
