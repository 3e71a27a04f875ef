"""What else lies in a folder of embeddings whose files nobody has chosen: pipes, links, previews, pairs, other kinds."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_embeddings_dir import MODEL, put

from ti_trainer import formats
from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError
from ti_trainer.formats import embeddings_dir

SD1 = type("Model", (), {"name": "v1-5", "widths": {"clip_l": 768}})


def values(folder: Path) -> dict[str, float]:
    return {name: each["clip_l"][0, 0].item() for name, each in embeddings_dir.words(folder, MODEL).items()}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_sockets_folders_and_devices_neither_hang_nor_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a.pt")
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    for ending in embeddings_dir.ENDINGS:
        os.mkfifo(f"pipe{ending}")
        (tmp_path / f"folder{ending}").mkdir()
        (tmp_path / f"device{ending}").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.pt")
        assert embeddings_dir.embedding_files(tmp_path) == [tmp_path / "a.pt"]
        assert values(tmp_path) == {"a": 0.5}


def test_links_in_circles_repeat_no_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "sub" / "a.pt")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "sub" / "here").symlink_to(tmp_path / "sub")
    (tmp_path / "broken.pt").symlink_to(tmp_path / "nowhere.pt")
    (tmp_path / "itself.pt").symlink_to(tmp_path / "itself.pt")
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    put(elsewhere / "b.pt", value=0.25)
    (tmp_path / "linked").symlink_to(elsewhere)
    assert values(tmp_path) == {"a": 0.5, "b": 0.25}
    assert len([path for path in embeddings_dir.embedding_files(tmp_path) if path.stem == "a"]) == 1
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert all("There is no file" in each for each in said), said


def test_files_of_other_kinds_stop_nothing_and_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "a.pt")
    save_file({"lora_unet_a.lora_up.weight": torch.ones(2, 2)}, tmp_path / "l.safetensors")
    save_file({"t5": torch.ones(2, 4096)}, tmp_path / "flux.safetensors")
    (tmp_path / "page.bin").write_bytes(b"<html>")
    with (tmp_path / "huge.pt").open("wb") as file:
        file.truncate(7 * 2**30)
    assert values(tmp_path) == {"a": 0.5}
    for said in ("is a LoRA", "Flux", "web page", "zeros only"):
        assert caplog.text.count(said) == 1


def test_a_file_that_may_not_be_opened_is_not_called_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root every file may, so the refusal is played."""
    put(tmp_path / "a.pt")
    put(tmp_path / "locked.pt")
    opened = Path.open

    def opening(path: Path, *arguments: object, **options: object) -> object:
        if path.stem == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", opening)
    assert values(tmp_path) == {"a": 0.5}
    assert "Permission denied" in caplog.text
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("preview", ["w.png", "w.webp", "w.preview.png", "w.jpg", "w.preview.jpg", "w.preview.webp"])
def test_an_image_beside_an_embedding_is_its_preview(preview: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "w.safetensors")
    Image.new("RGB", (3000, 2000)).save(tmp_path / preview)
    assert values(tmp_path) == {"w": 0.5}
    assert not caplog.records
    assert [each.path.name for each in embeddings_dir.survey(tmp_path, MODEL)] == ["w.safetensors"]


def test_the_second_file_of_a_pair_is_no_embedding_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for stem in ("t", "learned_embeds", "learned_embeds-steps-5"):
        pair = Embedding(stem, {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)})
        formats.write(pair, tmp_path / f"{stem}.safetensors", "diffusers")
    names = ["learned_embeds-steps-5.safetensors", "learned_embeds.safetensors", "t.safetensors"]
    assert [path.name for path in embeddings_dir.embedding_files(tmp_path)] == names
    assert embeddings_dir.words(tmp_path, MODEL) == {}
    assert "_2" not in caplog.text
    put(tmp_path / "cat.pt")
    put(tmp_path / "cat_2.pt", value=0.25)
    assert values(tmp_path) == {"cat": 0.5, "cat_2": 0.25}


def test_of_several_files_of_a_word_the_one_that_is_used_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "a" / "Cat.pt", value=0.125)
    put(tmp_path / "cat.pt", value=0.25)
    put(tmp_path / "b" / "CAT.bin", value=0.75)
    put(tmp_path / "cat.png")
    assert values(tmp_path) == {"cat": 0.25}
    assert embeddings_dir.find(tmp_path, "cat") == tmp_path / "cat.pt"
    said = sorted(record.getMessage() for record in caplog.records)
    assert [each.partition(", since")[0] for each in said] == [
        f"Skipped: {tmp_path / name}" for name in ("a/Cat.pt", "b/CAT.bin")
    ]
    assert all(f"{tmp_path / 'cat.pt'} has the same name" in each for each in said)


def test_a_pti_file_is_an_embedding_that_training_leaves_for_a_safetensors(tmp_path: Path) -> None:
    save_file({"text_encoders_0": torch.ones(2, 768)}, tmp_path / "a.pti")
    assert set(embeddings_dir.words(tmp_path, SD1)) == {"a"}
    assert embeddings_dir.trainable_file(tmp_path / "a.pti", 2) == tmp_path / "a.safetensors"


def test_dreamartists_own_negative_is_read_where_ours_is_missing(tmp_path: Path) -> None:
    put(tmp_path / "da.pt")
    theirs = put(tmp_path / "da-uc.pt", value=0.25)
    embedding, file = embeddings_dir.load_negative(tmp_path, "da")
    assert (embedding.name, embedding.vectors["clip_l"][0, 0].item()) == ("da-neg", 0.25)
    assert file == tmp_path / "da-neg.safetensors", "theirs is left as it is"
    assert values(tmp_path) == {"da": 0.5, "da-uc": 0.25, "da-neg": 0.25}
    ours = put(tmp_path / "da-neg.pt", value=0.75)
    assert embeddings_dir.load_negative(tmp_path, "da")[1] == ours
    assert values(tmp_path) == {"da": 0.5, "da-uc": 0.25, "da-neg": 0.75}
    ours.unlink()
    theirs.unlink()
    with pytest.raises(ConfigError, match="da-neg"):
        embeddings_dir.load_negative(tmp_path, "da")
