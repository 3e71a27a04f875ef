"""Captions are changed in many at once, one by one, and back; what is written, kept and refused when they are saved."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from PIL import Image

from ti_trainer.data.caption_edits import BACKUP, Captions, difference, load, tags_of
from ti_trainer.errors import ConfigError, DatasetError

TEXTS = {
    "a": "my cat, grass, sun",
    "b": "my cat,sofa",
    "c": "my cat, grass, tree",
    "01-a dog": None,
    "e": "A cat sits here.",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    here = tmp_path / "Bilder für später"
    here.mkdir()
    for stem, text in TEXTS.items():
        Image.new("RGB", (8, 8)).save(here / f"{stem}.png")
        if text is not None:
            (here / f"{stem}.txt").write_text(text, encoding="utf-8")
    return here


def now(captions: Captions) -> dict[str, str | None]:
    return {image.stem: captions.text(image) for image in captions.images}


def on_disk(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.txt")}


def test_captions_are_those_of_the_training(folder: Path) -> None:
    (folder / "a.txt").write_bytes("\ufeffrot, grün \n".encode())
    captions = load(folder)
    assert now(captions) == {**TEXTS, "a": "rot, grün"}
    assert captions.names["01-a dog"] == "a dog"
    assert load(folder, r"\w+", "_").names["01-a dog"] == "a_dog"
    assert captions.unsaved == []


def test_text_that_is_not_utf8_is_refused_by_name(folder: Path) -> None:
    (folder / "b.txt").write_bytes("Käse".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"b\.txt is not UTF-8"):
        load(folder)


def test_tags_are_what_commas_separate_and_a_sentence_is_one(folder: Path) -> None:
    captions = load(folder)
    assert tags_of(" a ,, b c,") == ["a", "b c"]
    assert captions.tags(folder / "e.png") == ["A cat sits here."]
    assert captions.counts()[:3] == [("my cat", 3), ("grass", 2), ("A cat sits here.", 1)]
    assert captions.counts([folder / "b.png"]) == [("my cat", 1), ("sofa", 1)]


def test_images_are_found_by_their_tags(folder: Path) -> None:
    captions = load(folder)

    def names(**given: object) -> list[str]:
        return [image.stem for image in captions.having(**given)]

    assert names(all_of=["my cat", "grass"]) == ["a", "c"]
    assert names(all_of=["my cat"], none_of=["grass"]) == ["b"]
    assert names(without_caption=True) == ["01-a dog"]
    assert len(names()) == 5


def test_tags_of_nearly_all_images_are_found(folder: Path) -> None:
    captions = load(folder)
    assert captions.common(0.6) == [("my cat", 0.6)]
    assert captions.common() == []


def test_tags_are_added_once_at_the_end_or_in_front(folder: Path) -> None:
    captions = load(folder)
    some = [folder / "a.png", folder / "b.png", folder / "01-a dog.png"]
    assert now(captions.add(some, "sofa, new")) == {
        **TEXTS,
        "a": "my cat, grass, sun, sofa, new",
        "b": "my cat, sofa, new",
        "01-a dog": "sofa, new",
    }
    assert captions.add(some[:2], "new, sofa", front=True).text(folder / "b.png") == "new, my cat, sofa"
    assert captions.add(some[:1], "sun") is captions


def test_tags_are_removed_and_a_caption_that_loses_its_last_is_none(folder: Path) -> None:
    captions = load(folder).remove(load(folder).images, ["my cat", "sofa"])
    assert now(captions) == {**TEXTS, "a": "grass, sun", "b": None, "c": "grass, tree"}
    assert captions.unsaved == ["a", "b", "c"]


def test_a_tag_is_renamed_in_its_place_and_not_doubled(folder: Path) -> None:
    captions = load(folder)
    assert (
        captions.rename(captions.images, "grass", "lawn, outdoors").text(folder / "a.png") == "my cat, lawn, outdoors, sun"
    )
    assert captions.rename(captions.images, "my cat", "sun").text(folder / "a.png") == "grass, sun"
    assert captions.rename(captions.images, "sun", "big sun, sun").text(folder / "a.png") == "my cat, grass, big sun, sun"
    with pytest.raises(ConfigError, match="no new name"):
        captions.rename(captions.images, "sun", " ,")


def test_tags_are_moved_to_the_front_in_the_order_given(folder: Path) -> None:
    captions = load(folder).to_front(load(folder).images, ["sun", "grass"])
    assert now(captions) == {**TEXTS, "a": "sun, grass, my cat", "c": "grass, my cat, tree"}


def test_text_is_replaced_plainly_or_by_a_regular_expression(folder: Path) -> None:
    captions = load(folder)
    assert captions.replace(captions.images, "cat", "dog").text(folder / "e.png") == "A dog sits here."
    assert captions.replace(captions.images, "a.", "x") is captions  # a dot is a dot
    assert captions.replace(captions.images, "grass", "").text(folder / "a.png") == "my cat, sun"
    swapped = captions.replace(captions.images, r"^my (\w+),\s*(\w+)", r"\2 \1", regex=True)
    assert [swapped.text(folder / f"{stem}.png") for stem in "ab"] == ["grass cat, sun", "sofa cat"]
    assert swapped.text(folder / "01-a dog.png") is None


@pytest.mark.parametrize(("search", "by"), [("(", ""), ("cat", r"\7"), ("nowhere(", "")])
def test_a_wrong_regular_expression_is_refused(folder: Path, search: str, by: str) -> None:
    captions = load(folder)
    with pytest.raises(ConfigError, match="expected a regular expression"):
        captions.replace(captions.images, search, by, regex=True)


def test_a_regular_expression_that_takes_too_long_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ti_trainer.config.patterns.REPLACING_S", 0.2)
    captions = load(folder).edit(folder / "a.png", "a" * 60)
    begin = time.thread_time()
    with pytest.raises(ConfigError, match="takes too long"):
        captions.replace(captions.images, "^(a|a|aa)+b$", "", regex=True)
    assert time.thread_time() - begin < 5


def test_what_was_done_can_be_undone_and_redone(folder: Path) -> None:
    first = load(folder)
    second = first.edit(folder / "a.png", " new ")
    third = second.remove(second.images, ["my cat"])
    assert now(third.undo()) == now(second)
    assert now(third.undo().undo()) == TEXTS
    assert third.undo().undo().undo().unsaved == []
    assert now(third.undo().redo()) == now(third)
    assert third.undo().edit(folder / "e.png", "x").redo().text(folder / "e.png") == "x"
    assert (difference(first, second), difference(second, third)) == (1, 2)
    assert first.edit(folder / "a.png", TEXTS["a"]) is first


def test_names_become_captions_where_there_is_none(folder: Path) -> None:
    captions = load(folder)
    assert now(captions.take_names(captions.images)) == {**TEXTS, "01-a dog": "a dog"}


def test_only_what_was_changed_is_written_and_what_was_there_is_kept(folder: Path) -> None:
    captions = load(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.txt")}
    captions = captions.edit(folder / "a.png", "grün").edit(folder / "b.png", "").edit(folder / "01-a dog.png", "dog")
    assert on_disk(folder) == {stem: text for stem, text in TEXTS.items() if text is not None}, "nothing before save"
    captions, saved = captions.save()
    assert (saved.written, saved.removed) == (2, 1)
    assert on_disk(folder) == {"a": "grün", "01-a dog": "dog", "c": TEXTS["c"], "e": TEXTS["e"]}
    assert saved.backup.parent == folder / BACKUP
    assert on_disk(saved.backup) == {"a": TEXTS["a"], "b": TEXTS["b"]}
    untouched = folder / "c.txt"
    assert untouched.stat().st_mtime_ns == before[untouched]
    assert captions.unsaved == []
    captions, again = captions.undo().undo().undo().save()
    assert on_disk(folder) == {stem: text for stem, text in TEXTS.items() if text is not None}
    assert again.backup != saved.backup
    assert on_disk(again.backup) == {"a": "grün", "01-a dog": "dog"}


def test_a_caption_that_somebody_else_changed_is_not_overwritten(folder: Path) -> None:
    captions = load(folder).remove(load(folder).images, ["my cat"]).edit(folder / "01-a dog.png", "mine")
    (folder / "b.txt").write_text("theirs", encoding="utf-8")
    (folder / "01-a dog.txt").write_text("theirs too", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"01-a dog\.txt, b\.txt"):
        captions.save()
    assert on_disk(folder)["a"] == TEXTS["a"]
    assert on_disk(folder)["b"] == "theirs"
    assert not (folder / BACKUP).exists()
    (folder / "b.txt").write_text("sofa", encoding="utf-8")  # what we would write: no reason to refuse
    (folder / "01-a dog.txt").unlink()
    captions.save()
    assert on_disk(folder)["01-a dog"] == "mine"


def test_images_of_one_name_share_their_caption(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "a.jpg")
    captions = load(folder).add([folder / "a.jpg", folder / "a.png"], "both")
    assert captions.text(folder / "a.png") == captions.text(folder / "a.jpg") == "my cat, grass, sun, both"
    assert captions.counts()[0] == ("my cat", 4)
    assert captions.save()[1].written == 1


def test_masks_are_no_images_of_their_own(folder: Path) -> None:
    for name in ("a_att.png", "b-masklabel.png"):
        Image.new("L", (8, 8)).save(folder / name)
    assert sorted(now(load(folder))) == sorted(TEXTS)


def test_captions_are_edited_in_the_files_that_are_read(folder: Path) -> None:
    for old, new in (("a.txt", "a.caption"), ("b.txt", "b.TXT"), ("c.txt", "c.png.txt")):
        (folder / old).rename(folder / new)
    captions = load(folder)
    assert now(captions) == TEXTS
    captions, saved = captions.remove(captions.images, ["my cat"]).edit(folder / "01-a dog.png", "dog").save()
    assert sorted(path.name for path in folder.iterdir() if path.suffix.lower() in (".txt", ".caption")) == [
        "01-a dog.txt", "a.caption", "b.TXT", "c.png.txt", "e.txt"
    ]  # fmt: skip
    assert (folder / "b.TXT").read_text() == "sofa"
    assert (saved.backup / "c.png.txt").read_text() == TEXTS["c"]
    assert now(load(folder)) == now(captions)


def test_a_name_that_says_nothing_is_offered_as_no_caption(folder: Path) -> None:
    (folder / "01-a dog.png").rename(folder / "IMG_2031.png")
    captions = load(folder)
    assert captions.names["IMG_2031"] == ""
    assert captions.take_names(captions.images) is captions
