"""A destination that is used again: with other options, other photos, after a kill. Nothing that somebody made is lost."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from test_runner import contents, photo, shown, source, work

from ti_trainer.data.listing import LEFT_OUT
from ti_trainer.errors import DatasetError
from ti_trainer.preprocess.manifest import FILE, JOURNAL
from ti_trainer.preprocess.runner import Preprocessing

__all__ = ["source"]  # a fixture


def made(source: Path) -> Path:
    return source.parent / "data set"


def own(path: Path) -> bytes:
    """An image that the user put there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 30), "white").save(path)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["IMG 0-2.png", "IMG 0.webp", "IMG 0-flipped.jpg"])
def test_files_that_only_look_like_ours_stay(source: Path, name: str) -> None:
    work(source).run()
    before = own(made(source) / name)
    work(source, width=128, height=128).run()
    assert (made(source) / name).read_bytes() == before


@pytest.mark.parametrize(("name", "options"), [("IMG 0.jpg", {"format": "jpg"}), ("IMG 0-flipped.png", {"flip": True})])
def test_files_in_the_way_of_other_options_are_named(source: Path, name: str, options: dict) -> None:
    work(source).run()
    before = own(made(source) / name)
    summary = work(source, **options).run()
    assert (made(source) / name).read_bytes() == before
    assert [failed for failed, _ in summary.failed] == ["IMG 0.jpg"]
    assert name in summary.failed[0][1]


def test_a_retouched_image_outlives_every_change_of_options(source: Path) -> None:
    work(source, flip=True).run()
    before = {name: own(made(source) / name) for name in ("IMG 0.png", "IMG 1-flipped.png")}
    for options in ({"format": "jpg"}, {}, {"width": 128}, {"flip": True}):
        work(source, **options).run()
        assert {name: (made(source) / name).read_bytes() for name in before} == before
        assert len([name for name in shown(made(source)) if name.startswith("IMG 0.")]) == 1  # not once more as .jpg


def test_what_was_left_out_stays_out_in_another_format(source: Path) -> None:
    work(source).run()
    (made(source) / LEFT_OUT).mkdir()
    (made(source) / "IMG 0.png").rename(made(source) / LEFT_OUT / "IMG 0.png")
    for options in ({"format": "jpg"}, {"width": 128}):
        work(source, **options).run()
        assert not list(made(source).glob("IMG 0.*"))


def test_files_put_there_after_an_interruption_are_safe(source: Path) -> None:
    first = work(source)
    first.run(should_stop=lambda: True)
    before = own(made(source) / "IMG 2.png")
    (made(source) / "IMG 1.txt").write_text("mine")
    summary = work(source, existing_captions="copy").run()
    assert (made(source) / "IMG 2.png").read_bytes() == before
    assert (made(source) / "IMG 1.txt").read_text() == "mine"
    assert [name for name, _ in summary.failed] == ["IMG 2.jpg"]


def test_a_mirrored_copy_keeps_its_caption_when_the_image_was_left_out(source: Path) -> None:
    work(source, flip=True, existing_captions="copy").run()
    (made(source) / LEFT_OUT).mkdir()
    for name in ("IMG 0.png", "IMG 0.txt"):
        (made(source) / name).rename(made(source) / LEFT_OUT / name)
    work(source, flip=True, existing_captions="copy", width=128, height=128).run()
    assert (made(source) / "IMG 0-flipped.txt").read_text() == "a caption"
    assert not (made(source) / "IMG 0.txt").exists()


def test_each_part_has_its_own_caption(tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "long.png", (64, 200))
    plain = work(tmp_path / "photos", split=True, flip=True)

    @contextmanager
    def captioning():
        count = iter(range(9))
        yield lambda image: f"part {next(count)}"

    captioned = Preprocessing(plain.source, plain.destination, plain.config, (), captioning)
    captioned.run()
    texts = {path.stem: path.read_text() for path in plain.destination.glob("*.txt")}
    parts = {stem for stem in texts if not stem.endswith("-flipped")}
    assert len({texts[stem] for stem in parts}) == len(parts) > 2
    assert all(texts[stem] == texts[f"{stem}-flipped"] for stem in parts)


def test_photos_of_the_same_name_from_another_folder_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, colour in (("A", "red"), ("B", "lime")):
        photo(tmp_path / folder / "photos" / "x.png", colour=colour)
    for folder in ("A", "B", "A"):
        monkeypatch.chdir(tmp_path / folder)
        Preprocessing(Path("photos"), tmp_path / "made", work(tmp_path).config).run()
    assert shown(tmp_path / "made") == ["x.png", "x_2.png"]
    assert Image.open(tmp_path / "made" / "x.png").getpixel((60, 30))[0] > 200


def test_a_changed_photo_is_made_anew_however_its_folder_is_called(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    relative = Preprocessing(Path(source.name), made(source), work(source).config)
    relative.run()
    photo(source / "IMG 1.jpg", colour="white")
    assert work(source).run().sources == 1
    assert shown(made(source)) == ["IMG 0.png", "IMG 1.png", "IMG 2.png"]


def test_names_too_long_or_strange_for_files(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    deep = source / ("d" * 120) / ("é" * 60)
    for name in ("n" * 240, "n" * 239 + "m", "back\\slash", "new\nline", "🦄"):
        photo(source / f"{name}.png")
    photo(deep / "x.png")
    again = work(source, recursive=True, flip=True)
    assert (again.run().failed, again.run().done_before) == ([], 6)
    assert len(shown(tmp_path / "data set")) == 12


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_to_nowhere_is_named(source: Path) -> None:
    (source / "gone.jpg").symlink_to(source / "nowhere.jpg")
    summary = work(source).run()
    assert any("gone.jpg" in each for each in summary.notes)
    assert (summary.sources, summary.failed) == (3, [])


def failing(source: Path, fails: set[int]) -> Preprocessing:
    """Whose captioner breaks at some images."""

    @contextmanager
    def captioning():
        seen: list[int] = []

        def caption(image: Image.Image) -> str:
            seen.append(1)
            if len(seen) in fails:
                raise RuntimeError("out of memory")
            return "said"

        yield caption

    plain = work(source)
    return Preprocessing(plain.source, plain.destination, plain.config, (), captioning)


def test_a_caption_that_fails_is_named_and_the_others_are_written(source: Path) -> None:
    summary = failing(source, {2}).run()
    assert [reason for _, reason in summary.failed] == ["out of memory"]
    assert (summary.sources, summary.captions) == (2, 2)
    again = failing(source, set()).run()
    assert (again.done_before, again.sources, again.kept) == (2, 1, [])
    assert len(list(made(source).glob("*.txt"))) == 3


def test_when_all_captions_fail_it_ends(source: Path) -> None:
    for number in range(20):
        photo(source / f"more {number}.png")
    with pytest.raises(DatasetError, match="5 captions in a row failed: out of memory"):
        failing(source, set(range(99))).run()


def test_after_a_kill_the_journal_tells_what_is_ours(source: Path) -> None:
    """As if it had been killed after two photos, when a third was about to take the place of its older image."""
    work(source, existing_captions="copy").run()
    manifest = json.loads((made(source) / FILE).read_text())
    lines = []
    for entry in manifest[:2]:
        images = entry["images"].items()
        lines += [{"stem": entry["stem"], "name": name, "signature": signature} for name, signature in images]
        lines += [{"stem": entry["stem"], "name": name, "hash": each} for name, each in entry["captions"].items()]
        entry |= {"settings": "", "images": {}, "captions": {}}
    manifest[2]["settings"] = ""
    lines.append({"stem": manifest[2]["stem"], "name": "IMG 2.png", "signature": [1, 1]})
    (made(source) / FILE).write_text(json.dumps(manifest))
    (made(source) / JOURNAL).write_text("\n".join(map(json.dumps, lines)) + '\n{"stem": "IMG 0", "na')
    retouched = own(made(source) / "IMG 1.png")
    (source / "IMG 0.txt").write_text("another caption")
    summary = work(source, existing_captions="copy", width=128, height=128).run()
    assert (made(source) / "IMG 1.png").read_bytes() == retouched
    assert summary.kept == ["IMG 1.png"]
    assert (made(source) / "IMG 0.txt").read_text() == "another caption"
    assert {Image.open(made(source) / f"IMG {number}.png").size for number in (0, 2)} == {(128, 128)}
    assert not (made(source) / JOURNAL).exists()
    assert contents(made(source)).keys() == {FILE, "IMG 0.png", "IMG 0.txt", "IMG 1.png", "IMG 2.png"}
