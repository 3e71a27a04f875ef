"""Deleting to the bin and restoring, and renaming: nothing is lost, nothing overwritten, and WebUIs do not read the bin."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from PIL import Image

from ti_trainer import formats
from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError
from ti_trainer.formats import embeddings_dir
from ti_trainer.workbench import bin
from ti_trainer.workbench.library import Library

READ_BY_WEBUIS = (".pt", ".bin", ".safetensors", ".png", ".webp", ".jxl", ".avif")


def put(path: Path, name: str = "") -> Path:
    formats.write(Embedding(name or path.stem, {"clip_l": torch.ones(2, 768)}, 5), path)
    return path


def files(folder: Path) -> list[str]:
    return sorted(each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file())


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    path = put(tmp_path / "pets" / "cat.pt")
    for beside in ("cat.pt.optim", "cat.preview.png", "cat.txt", "cats.txt"):
        path.with_name(beside).write_bytes(beside.encode())
    return path


def test_what_is_deleted_comes_back_with_what_belongs_to_it(tmp_path: Path, cat: Path) -> None:
    before = files(tmp_path)
    gone = bin.delete(tmp_path, cat)
    assert sorted(each.name for each in gone.files) == ["cat.preview.png", "cat.pt", "cat.pt.optim", "cat.txt"]
    assert [each for each in files(tmp_path) if not each.startswith(".deleted/")] == ["pets/cats.txt"]
    assert not [each for each in files(tmp_path) if each.endswith(READ_BY_WEBUIS)]
    assert Library(tmp_path).listing().total == 0
    (listed,) = bin.deleted(tmp_path)
    assert listed.label.startswith("pets/cat.pt, 20")
    assert bin.restore(tmp_path, bin.find(tmp_path, listed.label))[0].parent == cat.parent
    assert files(tmp_path) == before
    assert not bin.bin_of(tmp_path).exists()


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_all_files_are_moved_or_none(tmp_path: Path, cat: Path, failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "dog.safetensors", "dog")
    before, calls, move = {each: (tmp_path / each).read_bytes() for each in files(tmp_path)}, [], bin._move

    def broken(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        move(source, target)

    for act in (
        lambda: bin.delete(tmp_path, cat),
        lambda: bin.rename(tmp_path, cat, "lynx", print),
    ):
        calls.clear()
        monkeypatch.setattr(bin, "_move", broken)
        with pytest.raises(OSError, match="No space left"):
            act()
        assert {each: (tmp_path / each).read_bytes() for each in files(tmp_path)} == before
    monkeypatch.setattr(bin, "_move", move)
    monkeypatch.setattr(formats, "write", lambda *_: broken(cat, cat))
    calls[:] = [cat] * (failing - 1)
    with pytest.raises(OSError, match="No space left"):
        bin.rename(tmp_path, tmp_path / "dog.safetensors", "wolf", print)
    assert {each: (tmp_path / each).read_bytes() for each in files(tmp_path)} == before
    assert not (tmp_path / ".deleted").exists() or not list((tmp_path / ".deleted").iterdir())


def test_nothing_is_overwritten_when_it_comes_back(tmp_path: Path, cat: Path) -> None:
    bin.delete(tmp_path, cat)
    put(cat)
    before = files(tmp_path)
    (listed,) = bin.deleted(tmp_path)
    with pytest.raises(ConfigError, match="already"):
        bin.restore(tmp_path, listed)
    assert files(tmp_path) == before
    bin.delete(tmp_path, cat)
    assert len(bin.deleted(tmp_path)) == 2
    for label in ("", "../../etc", "nothing"):
        with pytest.raises(ConfigError):
            bin.find(tmp_path, label)


def test_the_preview_stays_for_another_file_of_the_name(tmp_path: Path, cat: Path) -> None:
    put(cat.with_suffix(".safetensors"))
    assert [each.name for each in bin.delete(tmp_path, cat).files] == ["cat.pt", "cat.pt.optim"]
    assert cat.with_name("cat.preview.png").exists()


def test_both_files_of_diffusers_sdxl_go_together(tmp_path: Path) -> None:
    vectors = {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}
    formats.write(Embedding("cat", vectors), tmp_path / "cat.safetensors", "diffusers")
    new = bin.rename(tmp_path, tmp_path / "cat.safetensors", "dog", [].append)
    assert files(tmp_path) == ["dog.safetensors", "dog_2.safetensors"]
    assert formats.read(new).family == "SDXL"
    assert len(bin.delete(tmp_path, new).files) == 2


def test_a_renamed_file_has_the_name_inside_too_and_takes_its_preview_along(tmp_path: Path) -> None:
    path = put(tmp_path / "cat.safetensors")
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png")
    new = bin.rename(tmp_path, path, "my dog", [].append)
    assert files(tmp_path) == ["my dog.png", "my dog.safetensors"]
    assert (formats.read(new).name, formats.read(new).step) == ("my dog", 5)
    assert bin.rename(tmp_path, new, "My Dog", [].append).stem == "My Dog"
    warnings: list[str] = []
    bin.rename(tmp_path, put(tmp_path / "card.png"), "other", warnings.append)
    assert "name stored in a card" in warnings[0]


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "con", "x" * 300, "cat", "DOG", "dog.pt", "notes"])
def test_names_that_are_invalid_or_taken_are_refused(name: str, tmp_path: Path) -> None:
    path = put(tmp_path / "cat.safetensors")
    put(tmp_path / "dog.pt")
    (tmp_path / "cat.txt").write_text("x", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    before = files(tmp_path)
    with pytest.raises(ConfigError):
        bin.rename(tmp_path, path, name, [].append)
    assert files(tmp_path) == before


def test_an_entry_behind_a_link_is_moved_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "embeddings"
    put(tmp_path / "elsewhere" / "cat.pt")
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    bin.delete(folder, folder / "link" / "cat.pt")
    assert embeddings_dir.embedding_files(folder) == []
    bin.restore(folder, bin.deleted(folder)[0])
    assert (tmp_path / "elsewhere" / "cat.pt").is_file()
