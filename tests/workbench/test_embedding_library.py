"""The embeddings folder as a library: what is listed, how it is searched, sorted and filtered, and how much work that is."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from ti_trainer import formats
from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError
from ti_trainer.workbench import library as module
from ti_trainer.workbench.library import NO_EMBEDDING, Library, Query, page_of

SD1, SDXL = {"clip_l": 768}, {"clip_l": 768, "clip_g": 1280}


def put(path: Path, widths: dict[str, int] = SD1, count: int = 2, **more: object) -> Path:
    vectors = {encoder: torch.ones(count, width) for encoder, width in widths.items()}
    formats.write(Embedding(more.pop("name", path.stem), vectors, **more), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path / "beta.safetensors", count=5, step=300)
    put(tmp_path / "Alpha.pt", count=1)
    put(tmp_path / "styles" / "gamma.safetensors", SDXL)
    put(tmp_path / "card.png", count=3)
    put(tmp_path / "long.safetensors", count=80)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "beta.png")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "photo.png")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "beta.preview.png")
    (tmp_path / "wrong.safetensors").write_bytes(b"<html>")
    return tmp_path


def names(found: object) -> list[str]:
    return [each.name for each in found]


def test_a_folder_that_cannot_be_read_is_not_called_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Library(tmp_path / "none").listing().total == 0

    def forbidden(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(PermissionError):
        Library(tmp_path).listing()


def test_lists_offer_cards_and_no_plain_images(folder: Path) -> None:
    assert module.names(folder) == ["Alpha", "beta", "card", "gamma", "long", "wrong"]
    (folder / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\xff\xff\xff\xfftEXt")
    assert "photo" not in module.names(folder)
    with contextlib.suppress(OSError):  # a file system that allows only UTF-8
        (folder / "x\udcff.safetensors").write_bytes(b"")
    assert all(name.isascii() for name in module.names(folder))


def test_files_are_listed_with_what_their_headers_say_and_without_previews(folder: Path) -> None:
    listing = Library(folder).listing()
    assert names(listing.entries) == ["Alpha", "beta", "card", "gamma", "long", "photo", "wrong"]
    assert (listing.total, listing.unread) == (7, 0)
    beta = listing.entries[1]
    assert (beta.outline.num_vectors, beta.outline.step, beta.outline.family) == (5, 300, "SD 1.x")
    assert not listing.entries[0].is_read  # a .pt is read when it is shown
    library = Library(folder)
    read = {each.name: each for each in library.read(library.listing().entries)}
    assert read["Alpha"].outline.num_vectors == 1
    assert read["photo"].problem == NO_EMBEDDING
    assert "web page" in read["wrong"].problem


def test_search_sort_and_filter(folder: Path) -> None:
    library = Library(folder)
    assert names(library.listing(Query("GAM style")).entries) == ["gamma"]
    assert names(library.listing(Query(sort="vectors")).entries)[:3] == ["long", "beta", "card"]
    assert names(library.listing(Query(sort="family")).entries)[-2:] == ["photo", "wrong"]
    os.utime(folder / "card.png", (2e9, 2e9))
    assert names(library.listing(Query(sort="date")).entries)[0] == "card"
    assert names(library.listing(Query(usable_with=SD1)).entries) == ["Alpha", "beta", "card"]
    assert names(library.listing(Query(usable_with=SDXL)).entries) == ["gamma"]


def test_what_a_model_cannot_use_has_a_reason(folder: Path) -> None:
    put(folder / "beta.pt")
    library = Library(folder)
    found = {each.path.name: each.unusable(SD1) for each in library.read(library.listing().entries)}
    assert found["gamma.safetensors"] == "for SDXL models"
    assert "80 vectors" in found["long.safetensors"]
    assert found["beta.pt"] == "beta in a prompt means beta.safetensors"
    assert found["beta.safetensors"] == ""
    assert found["photo.png"] == NO_EMBEDDING


def test_facts_are_kept_until_a_file_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, read = Library(folder), []
    facts = module._facts
    monkeypatch.setattr(module, "_facts", lambda path: read.append(path.name) or facts(path))
    for _ in range(2):
        library.listing()
    assert sorted(read) == ["beta.safetensors", "gamma.safetensors", "long.safetensors", "wrong.safetensors"]
    put(folder / "beta.safetensors", count=7)
    entry = next(each for each in library.listing().entries if each.name == "beta")
    assert (read[4:], entry.outline.num_vectors) == (["beta.safetensors"], 7)


def test_files_without_headers_are_read_within_a_limit_and_the_rest_is_counted(folder: Path) -> None:
    listing = Library(folder, whole_s=0).listing(Query(sort="family"))
    assert listing.unread == 3
    assert len(listing.entries) == 7


def test_a_place_is_looked_up_and_never_used_as_a_path(folder: Path) -> None:
    library = Library(folder)
    put(folder.parent / "outside.safetensors")
    assert library.find("styles/gamma.safetensors").name == "gamma"
    for place in ("../outside.safetensors", str(folder / "beta.safetensors"), "", "gone.pt", "styles\\gamma.safetensors"):
        with pytest.raises(ConfigError):
            library.find(place)


def test_pages_are_counted_from_one_and_corrected(folder: Path) -> None:
    entries = Library(folder).listing().entries
    assert [(len(some), at, count) for some, at, count in (page_of(entries, n, 3) for n in (0, 1, 3, 9))] == [
        (3, 1, 3),
        (3, 1, 3),
        (1, 3, 3),
        (1, 3, 3),
    ]
    assert page_of((), 5, 24)[1:] == (1, 1)


def test_a_folder_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert Library(tmp_path / "nowhere").listing().total == 0


def calls_for(folder: Path, count: int) -> int:
    """The function calls that listing this many files takes, which does not depend on the machine as time does."""
    folder.mkdir()
    first = put(folder / "e0.safetensors", count=8)
    for number in range(1, count):
        os.link(first, folder / f"e{number}.safetensors")
    counted: Counter[str] = Counter()
    library = Library(folder)
    sys.setprofile(lambda frame, event, argument: counted.update((event,)))
    listing = library.listing(Query(sort="vectors", usable_with=SD1))
    sys.setprofile(None)
    assert len(listing.entries) == count
    return counted["call"] + counted["c_call"]


def test_the_work_for_each_file_is_small_and_does_not_grow_with_their_number(tmp_path: Path) -> None:
    few, many = (calls_for(tmp_path / str(count), count) for count in (50, 400))
    assert many < 500 * 400  # it is about 330 for each, and 10,000 files take 0.9 s
    assert many < 9 * few
