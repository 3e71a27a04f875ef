"""Cards, decoded here as the WebUI decodes them, one pixel at a time."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats import make_card, read, write, write_card
from ti_trainer.formats.card import _noise

INTEROP = Path(__file__).parents[1] / "fixtures" / "interop"


def webui_pixels(image: Image.Image) -> dict:
    """The JSON in a card's pixels by the WebUI's rules, without its code or ours."""
    pixels = np.array(image.convert("RGB"))
    lit = np.all(pixels > 0, axis=2)
    top, left = lit.any(1).argmax(), lit.any(0).argmax()
    bottom, right = len(pixels) - lit.any(1)[::-1].argmax(), pixels.shape[1] - lit.any(0)[::-1].argmax()
    low_bits = pixels[top:bottom, left:right] % 16
    black = [x for x in range(low_bits.shape[1]) if not low_bits[:, x].any()]
    blocks = low_bits[:, : black[0]], low_bits[:, black[-1] + 1 :]
    assert blocks[0].shape == blocks[1].shape
    seed, data = 0, bytearray()
    for low, high in zip(blocks[0].ravel().tolist(), blocks[1].ravel().tolist(), strict=True):
        seed = (1664525 * seed + 1013904223) % 2**32
        noise = seed % 255 % 16
        data.append((low ^ noise) + 16 * (high ^ noise))
    return json.loads(zlib.decompress(bytes(data)))


def test_the_noise_is_the_webuis() -> None:
    known = [253, 242, 127, 44, 157, 27, 239, 133, 38, 79, 167, 4, 177, 95, 130, 79, 78, 14, 52, 215]
    assert _noise((2, 5, 2)).ravel().tolist() == [value % 16 for value in known]


@pytest.mark.parametrize("size", [(512, 512), (64, 64), (31, 200), (768, 700)])
@pytest.mark.parametrize(("family", "num_vectors"), [("SD 1.x", 1), ("SD 1.x", 16), ("SD 2.x", 8), ("embedded", 2)])
def test_the_webui_reads_our_pixels(size, family, num_vectors, make) -> None:
    embedding = make(family, num_vectors)
    card = make_card(Image.new("RGB", size, (0, 0, 0)), embedding)
    data = webui_pixels(card)
    (vectors,) = embedding.vectors.values()
    assert torch.equal(torch.tensor(data["string_to_param"]["*"]["TORCHTENSOR"]), vectors)
    assert (data["name"], data["step"], data["sd_checkpoint"]) == ("my-cat", 500, "6ce0161689")
    assert min(card.size) >= 512


def test_blocks_are_as_wide_as_the_webuis() -> None:
    """512 pixels of image, two black columns and two blocks: 536 for the same embedding."""
    card = make_card(Image.new("RGB", (512, 512)), read(INTEROP / "card-sd1.png"))
    assert card.size == Image.open(INTEROP / "card-sd1.png").size == (536, 512)
    assert webui_pixels(card) == webui_pixels(Image.open(INTEROP / "card-sd1.png"))


def test_text_chunk_and_pixels_say_the_same(make, assert_same, tmp_path: Path) -> None:
    write_card(Image.new("RGBA", (300, 300), (90, 120, 160, 255)), make(), tmp_path / "my-cat.png", title="A cat")
    image = Image.open(tmp_path / "my-cat.png")
    assert json.loads(base64.b64decode(image.text["sd-ti-embedding"])) == webui_pixels(image)
    image.save(tmp_path / "stripped.png", pnginfo=None)
    Image.open(tmp_path / "stripped.png").convert("RGBA").save(tmp_path / "alpha.webp", lossless=True)
    for name, where in (("my-cat.png", "text chunk"), ("stripped.png", "pixels"), ("alpha.webp", "pixels")):
        card = read(tmp_path / name)
        assert_same(card, make())
        assert card.info["where"] == where


def test_a_black_border_around_a_card_does_no_harm(make, assert_same, tmp_path: Path) -> None:
    framed = Image.new("RGB", (900, 700))
    framed.paste(make_card(Image.new("RGB", (512, 512), "white"), make()), (40, 60))
    framed.save(tmp_path / "framed.png")
    assert_same(read(tmp_path / "framed.png"), make())


def test_the_webui_takes_sdxl_cards(make, tmp_path: Path) -> None:
    """It accepts `clip_l` and `clip_g` if nothing is beside them, and makes a tensor of any dict with TORCHTENSOR."""
    write(make("SDXL"), tmp_path / "my-cat.png")
    data = webui_pixels(Image.open(tmp_path / "my-cat.png"))
    assert set(data) == {"clip_l", "clip_g"}
    assert all("TORCHTENSOR" in tensor for tensor in data.values())


def test_vectors_of_zeros_and_odd_names_make_cards(make, assert_same, tmp_path: Path) -> None:
    zeros = make(name="猫 übercat " + "x" * 60, checkpoint=None, checkpoint_hash=None)
    zeros = zeros.with_vectors({"clip_l": torch.zeros(2, 768)}, 0)
    write(zeros, tmp_path / "zeros.png")
    assert_same(read(tmp_path / "zeros.png"), zeros)


@pytest.mark.parametrize("name", ["image.png", "card.jpg", "resized.png", "edited.png", "black.png"])
def test_images_without_an_embedding_say_what_to_do(name: str, make, tmp_path: Path) -> None:
    card = make_card(Image.new("RGB", (512, 512), "white"), make())
    images = {
        "image.png": Image.new("RGB", (64, 64), "white"),
        "card.jpg": card,
        "resized.png": card.resize((256, 256)),
        "edited.png": card.point(lambda value: min(255, value + value % 3)),
        "black.png": Image.new("RGB", (64, 64)),
    }
    images[name].save(tmp_path / name)
    with pytest.raises(EmbeddingFormatError, match=rf"{name}.*re-encoded or resized.*Get the original"):
        read(tmp_path / name)
