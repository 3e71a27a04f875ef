"""Cards that carry a negative embedding besides: it comes back whole, and to all others the card is that of the word."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_cards import webui_pixels

from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats import card as card_file
from ti_trainer.formats import read, read_negative, write, write_card

CHUNK = "ti-trainer-negative"
IMAGE = Image.new("RGB", (512, 512), (90, 120, 160))
FAMILIES = ("SD 1.x", "SD 2.x", "SDXL", "embedded")


def webuis_text(path: Path) -> dict:
    """What the WebUI v1.10.1 reads of a PNG before it looks at pixels: this one chunk, and of others it does not know."""
    with Image.open(path) as image:
        return json.loads(base64.b64decode(image.text["sd-ti-embedding"]))


def with_chunk(path: Path, content: bytes | str) -> Path:
    """A card whose word can be read, with this in the place of its negative."""
    text = PngInfo()
    with Image.open(path) as image:
        text.add_text("sd-ti-embedding", image.text["sd-ti-embedding"])
        text.add_text(CHUNK, content)
        image.save(path, pnginfo=text)
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_both_come_back_as_they_were(family: str, make, assert_same, tmp_path: Path) -> None:
    word, negative = make(family, 3), make(family, 6, name="my-cat-neg", step=499)
    write_card(IMAGE, word, tmp_path / "my-cat-500.png", negative=negative)
    assert_same(read(tmp_path / "my-cat-500.png"), word)
    assert_same(read_negative(tmp_path / "my-cat-500.png"), negative)


@pytest.mark.parametrize("family", FAMILIES)
def test_to_others_it_is_the_card_of_the_word_alone(family: str, make, tmp_path: Path) -> None:
    write_card(IMAGE, make(family), tmp_path / "alone.png")
    write_card(IMAGE, make(family), tmp_path / "both.png", negative=make(family, 6, name="my-cat-neg"))
    alone, both = (Image.open(tmp_path / name) for name in ("alone.png", "both.png"))
    assert alone.tobytes() == both.tobytes()
    assert webui_pixels(both) == webui_pixels(alone)
    assert webuis_text(tmp_path / "both.png") == webuis_text(tmp_path / "alone.png") == webui_pixels(alone)


def test_a_card_whose_texts_were_stripped_has_its_word_left(make, assert_same, tmp_path: Path) -> None:
    write_card(IMAGE, make(), tmp_path / "both.png", negative=make(num_vectors=6, name="my-cat-neg"))
    with Image.open(tmp_path / "both.png") as image:
        image.convert("RGB").save(tmp_path / "stripped.png", pnginfo=PngInfo())
    assert_same(read(tmp_path / "stripped.png"), make())
    assert read_negative(tmp_path / "stripped.png") is None


def test_others_have_none(make, tmp_path: Path) -> None:
    negative = make(num_vectors=6, name="my-cat-neg")
    write_card(IMAGE, make(), tmp_path / "card.webp", negative=negative)
    write_card(IMAGE, make(), tmp_path / "plain.png")
    IMAGE.save(tmp_path / "image.png")
    IMAGE.save(tmp_path / "image.jpg")
    IMAGE.save(tmp_path / "jpeg by another name.png", format="JPEG")
    (tmp_path / "webp by another name.png").write_bytes((tmp_path / "card.webp").read_bytes())
    write(make(), tmp_path / "my-cat.pt")
    write(make(), tmp_path / "file.safetensors")
    (tmp_path / "safetensors by another name.png").write_bytes((tmp_path / "file.safetensors").read_bytes())
    for path in tmp_path.iterdir():
        assert read_negative(path) is None, path.name


def test_a_negative_that_cannot_be_written_leaves_no_card(make, tmp_path: Path) -> None:
    negative = make(name="my-cat-neg")
    negative.vectors["clip_l"][0, 0] = float("nan")
    with pytest.raises(EmbeddingFormatError, match="'my-cat-neg' cannot be written: 1 of its 2304 numbers"):
        write_card(IMAGE, make(), tmp_path / "card.png", negative=negative)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        "",
        "%%%",
        "bm90IGpzb24=",  # not json
        base64.b64encode(b"[1, 2]").decode(),
        base64.b64encode(b'{"string_to_param": {"*": {"TORCHTENSOR": [[1.0], [1.0, 2.0]]}}}').decode(),
        base64.b64encode(b'{"string_to_param": {"*": {"TORCHTENSOR": "__import__"}}}').decode(),
        base64.b64encode(b'{"string_to_param": {"*": {"TORCHTENSOR": [[NaN, 1.0]]}}}').decode(),
        base64.b64encode(b"[" * 100_000).decode(),
    ],
)
def test_a_damaged_negative_is_told_of_and_the_word_is_still_there(content: str, make, assert_same, tmp_path: Path) -> None:
    write(make(), tmp_path / "my-cat.png")
    with_chunk(tmp_path / "my-cat.png", content)
    with pytest.raises(EmbeddingFormatError, match=r"my-cat\.png cannot be read as an embedding"):
        read_negative(tmp_path / "my-cat.png")
    assert_same(read(tmp_path / "my-cat.png"), make())


def test_one_that_is_too_large_is_refused_before_it_is_decoded(make, tmp_path: Path, monkeypatch) -> None:
    write(make(), tmp_path / "my-cat.png")
    monkeypatch.setattr(card_file, "_MAX_JSON", 3 * 2**10)
    monkeypatch.setattr(card_file.base64, "b64decode", lambda text: pytest.fail("it was decoded"))
    with_chunk(tmp_path / "my-cat.png", "A" * (2**12 + 1))
    with pytest.raises(EmbeddingFormatError, match="its text has more than 4096 characters"):
        read_negative(tmp_path / "my-cat.png")


def test_a_card_cut_short_is_told_of(make, tmp_path: Path) -> None:
    write_card(IMAGE, make(), tmp_path / "my-cat.png", negative=make(num_vectors=6, name="my-cat-neg"))
    whole = (tmp_path / "my-cat.png").read_bytes()
    at = whole.index(CHUNK.encode())
    (tmp_path / "my-cat.png").write_bytes(whole[: at + 500])
    with pytest.raises(EmbeddingFormatError, match=r"my-cat\.png cannot be read"):
        read_negative(tmp_path / "my-cat.png")


def test_a_chunk_that_unpacks_to_a_great_deal_is_refused(make, tmp_path: Path) -> None:
    write(make(), tmp_path / "my-cat.png")
    text = PngInfo()
    text.add_text(CHUNK, "A" * 2**26, zip=True)
    with Image.open(tmp_path / "my-cat.png") as image:
        image.save(tmp_path / "my-cat.png", pnginfo=text)
    assert (tmp_path / "my-cat.png").stat().st_size < 2**20
    with pytest.raises(EmbeddingFormatError, match=r"my-cat\.png cannot be read"):
        read_negative(tmp_path / "my-cat.png")
