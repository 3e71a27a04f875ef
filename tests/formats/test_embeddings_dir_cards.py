"""Cards in the embeddings folder that carry a negative: a word of its own in prompts, and a file where one is wished."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_embeddings_dir import MODEL, put

from ti_trainer import formats
from ti_trainer.embedding import Embedding
from ti_trainer.formats import embeddings_dir

IMAGE = Image.new("RGB", (64, 64))


def vectors(value: float, width: int = 8, count: int = 1) -> dict[str, torch.Tensor]:
    return {"clip_l": torch.full((count, width), value)}


def put_card(path: Path, value: float = 0.25, **negative: int) -> Path:
    """Its word is 0.5 everywhere, its negative this."""
    unwanted = Embedding("made as", vectors(value, **negative), 4)
    formats.write_card(IMAGE, Embedding("made as", vectors(0.5), 4), path, negative=unwanted)
    return path


def damage(card: Path) -> None:
    text = PngInfo()
    with Image.open(card) as image:
        text.add_text("sd-ti-embedding", image.text["sd-ti-embedding"])
        text.add_text("ti-trainer-negative", base64.b64encode(b"{").decode())
        image.save(card, pnginfo=text)


def values(words: dict[str, dict[str, torch.Tensor]]) -> dict[str, float]:
    return {name: each["clip_l"][0, 0].item() for name, each in words.items()}


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder).as_posix()) for path in folder.rglob("*.*")}


def test_a_card_that_is_not_what_the_word_means_has_no_say(tmp_path: Path) -> None:
    put_card(tmp_path / "old" / "my-cat.png")
    put(tmp_path / "my-cat.safetensors", value=0.75)
    assert values(embeddings_dir.words(tmp_path, MODEL)) == {"my-cat": 0.75}
    assert embeddings_dir.take_negatives_out(tmp_path) == []


def test_a_card_means_both_words_under_the_name_of_its_file(tmp_path: Path) -> None:
    put_card(tmp_path / "my-cat.png")
    put_card(tmp_path / "sub" / "my dog-500.png", 0.125)
    expected = {"my-cat": 0.5, "my-cat-neg": 0.25, "my dog-500": 0.5, "my dog-500-neg": 0.125}
    assert values(embeddings_dir.words(tmp_path, MODEL)) == expected


@pytest.mark.parametrize("name", ["my-cat-neg.safetensors", "sub/my-cat-neg.pt", "MY-CAT-NEG.bin", "my-cat-neg.png"])
def test_a_file_of_the_negative_goes_before_what_a_card_carries(name: str, tmp_path: Path) -> None:
    put_card(tmp_path / "my-cat.png")
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    if name == "my-cat-neg.png":
        formats.write_card(IMAGE, Embedding("my-cat-neg", vectors(0.75)), file)
    else:
        formats.write(Embedding("my-cat-neg", vectors(0.75)), file)
    before = file.read_bytes()
    found = values(embeddings_dir.words(tmp_path, MODEL))
    assert found == {"my-cat": 0.5, file.stem: 0.75}
    assert embeddings_dir.take_negatives_out(tmp_path) == []
    assert file.read_bytes() == before
    assert files_in(tmp_path) == {"my-cat.png", name}


def test_negatives_are_taken_out_beside_their_cards_once_and_say_what_they_are(tmp_path: Path) -> None:
    cards = [put_card(tmp_path / "my-cat.png"), put_card(tmp_path / "sub" / "my-dog.png", 0.125)]
    put(tmp_path / "plain.png")
    IMAGE.save(tmp_path / "image.png")
    before = [card.read_bytes() for card in cards]
    written = embeddings_dir.take_negatives_out(tmp_path)
    assert written == [tmp_path / "my-cat-neg.safetensors", tmp_path / "sub" / "my-dog-neg.safetensors"]
    cat = formats.read(written[0])
    assert (cat.name, cat.step, cat.vectors["clip_l"].tolist()) == ("my-cat-neg", 4, [[0.25] * 8])
    assert formats.read(written[1]).vectors["clip_l"][0, 0] == 0.125
    assert [card.read_bytes() for card in cards] == before
    assert embeddings_dir.take_negatives_out(tmp_path) == []


def test_two_cards_of_a_word_make_one_file_of_its_negative(tmp_path: Path) -> None:
    put_card(tmp_path / "a" / "my-cat.png", 0.25)
    put_card(tmp_path / "b" / "my-cat.png", 0.75)
    assert values(embeddings_dir.words(tmp_path, MODEL))["my-cat-neg"] == 0.25
    assert embeddings_dir.take_negatives_out(tmp_path) == [tmp_path / "a" / "my-cat-neg.safetensors"]


@pytest.mark.parametrize("negative", [{"width": 768}, {"count": 76}])
def test_a_negative_that_does_not_fit_is_no_word(negative: dict[str, int], tmp_path: Path) -> None:
    put_card(tmp_path / "my-cat.png", **negative)
    assert set(embeddings_dir.words(tmp_path, MODEL)) == {"my-cat"}


def test_a_damaged_negative_is_told_of_and_keeps_nobody_from_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(put_card(tmp_path / "a.png"))
    put_card(tmp_path / "b.png")
    assert set(embeddings_dir.words(tmp_path, MODEL)) == {"a", "b", "b-neg"}
    assert "the negative of a card: a.png cannot be read" in caplog.text
    assert embeddings_dir.take_negatives_out(tmp_path) == [tmp_path / "b-neg.safetensors"]


def test_a_folder_of_many_embeddings_is_not_listed_for_each_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(100):
        put(tmp_path / f"word-{number}.safetensors")
    put_card(tmp_path / "my-cat.png")
    walks: list[Path] = []
    walk = embeddings_dir._walk
    monkeypatch.setattr(embeddings_dir, "_walk", lambda folder: walks.append(folder) or walk(folder))
    found, _ = embeddings_dir.usable(tmp_path, MODEL)
    assert len(found) == 102
    assert len(walks) == 2, "one for the embeddings, one for the negatives in cards"


def test_of_two_files_of_a_name_each_is_found_by_its_own_capitals(tmp_path: Path) -> None:
    put_card(tmp_path / "sub" / "My-Cat.png")
    put(tmp_path / "my-cat.safetensors")
    assert embeddings_dir.find(tmp_path, "My-Cat") == tmp_path / "sub" / "My-Cat.png"
    assert [card.name for card, _ in embeddings_dir.negatives_in_cards(tmp_path)] == ["My-Cat.png"]
