"""Files of a dataset folder that are not used are named or counted, with the reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from ti_trainer.data import image_files
from ti_trainer.data.caption_files import captions_among
from ti_trainer.data.image_files import find_images, unused
from ti_trainer.data.listing import files_below, files_in
from ti_trainer.data.masks import find_masks, masks_beside


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"something")


def test_images_captions_masks_and_what_systems_leave_there_are_not_spoken_of(tmp_path: Path) -> None:
    put(tmp_path, "01.png", "01.txt", "02.JPG", "02.TXT", "03.webp", "03.Caption", "04.png", "04.png.txt")
    put(tmp_path, "01_att.png", "02_att.unspread", "Thumbs.db", "desktop.ini", ".DS_Store", ".cache/a.png")
    put(tmp_path, ".ti_trainer-preprocess.json", "left out/a.png", "captions-backup/2026/01.txt")
    assert unused(tmp_path) == []
    assert unused(tmp_path, recursive=True) == []
    assert unused(tmp_path / "nowhere") == []
    put(tmp_path / "generated" / "x-word-0123abcd", "01-1.png", "contexts.txt")
    assert unused(tmp_path / "generated" / "x-word-0123abcd") == []


@pytest.mark.usefixtures("without_image_plugins")
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a.HEIC", "b.heic", "c.heif"), ("Not used: 2 .heic, 1 .heif files.", "pip install pillow-heif", ".png or .jpg")),
        (("a.jxl",), ("Not used: 1 .jxl file.", "pip install pillow-jxl-plugin")),
        (("a.CR2", "a.dng"), ("1 .cr2, 1 .dng files. Raw photos",)),
        (("a.mp4", "a.MOV"), ("1 .mov, 1 .mp4 files. Videos",)),
        (("a.svg", "a.pdf"), ("1 .pdf, 1 .svg files. This image format cannot be read here",)),
        (("a.zip",), ("1 .zip file. Archives",)),
        (
            ("metadata.jsonl", "meta_cap.json", "captions.csv"),
            ("captions.csv, meta_cap.json, metadata.jsonl. Each caption is",),
        ),
        (("contexts.txt",), ("Captions without an image of the same name are not used: contexts.txt.",)),
        (("99.txt", "98.caption"), ("Captions without an image of the same name are not used: 98.caption, 99.txt.",)),
        (("01.caption", "01.png.txt"), ("their images have another caption file: 01.caption, 01.png.txt.",)),
        (("a.npz", "b.npz", "c.foo", "LICENSE"), ("Not used: 2 .npz, 1 .foo, 1 LICENSE files.",)),
        (("a.gif",), ("Only the first frame or page is used of 1 .gif file.",)),
        (tuple(f"a.{ending}" for ending in "bcdefgh"), ("1 .b, 1 .c, 1 .d, 1 .e, 1 .f, 1 .g, 1 .h files",)),
        (
            ("09-masklabel.png", "8_att.jpg"),
            ("without an image of the same name are not used: 09-masklabel.png, 8_att.jpg",),
        ),
        (
            ("01_mask.png", "01-Mask.jpg", "01_ATT.png"),
            ("masks made by another program: 01-Mask.jpg, 01_ATT.png, 01_mask.png. Name masks",),
        ),
        (("more/a.png", "more/deep/b.HEIC", "notes/a.txt"), ("Images in subfolders are not used: more (2 images).",)),
    ],
)
def test_what_is_not_used_is_counted_by_its_ending_with_the_reason(
    tmp_path: Path, names: tuple[str, ...], said: tuple[str, ...]
) -> None:
    put(tmp_path, "01.png", "01.txt", *names)
    (sentence,) = unused(tmp_path)
    for part in said:
        assert part in sentence


def test_masks_without_their_image_and_those_of_other_programs_are_no_images(tmp_path: Path) -> None:
    put(tmp_path, "01.png", "09-masklabel.png", "09_att.png", "01_mask.png", "01-mask.png", "red_mask.png")
    assert [path.name for path in find_images(tmp_path)] == ["01.png", "red_mask.png"]


def test_of_moving_images_and_many_pages_the_first_is_used(tmp_path: Path) -> None:
    two = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for name in ("a.webp", "a.tif", "a.png"):
        two[0].save(tmp_path / name)
        two[0].save(tmp_path / f"moving {name}", save_all=True, append_images=two[1:])
    assert unused(tmp_path) == ["Only the first frame or page is used of 1 .png, 1 .tif, 1 .webp files."]


def test_captions_are_found_whatever_the_capitals_and_accents_where_that_is_clear(tmp_path: Path) -> None:
    umlaut = "fu\u0308r.png"  # as archives made on a Mac have it
    put(tmp_path, umlaut, "f\u00fcr.txt", "Foto.png", "foto.txt", "01.png", "01.PNG.caption", "f\u00fcr_att.png")
    put(tmp_path, "A.png", "a.png", "a.txt", "B.png", "b.png", "b.txt", "B.caption", "c.jpg", "c.TXT", "C.txt")
    images = find_images(tmp_path)
    found = {image.name: file.name for image, file in captions_among(files_in(tmp_path), images).items()}
    assert found == {
        umlaut: "f\u00fcr.txt", "Foto.png": "foto.txt", "01.png": "01.PNG.caption", "a.png": "a.txt", "b.png": "b.txt",
        "B.png": "B.caption", "c.jpg": "c.TXT",
    }  # fmt: skip
    assert masks_beside(tmp_path) == {Path(umlaut).stem: tmp_path / "f\u00fcr_att.png"}
    assert unused(tmp_path) == ["Not used, because their images have another caption file: C.txt."]


def test_captions_of_which_it_is_not_clear_whose_they_are_are_not_used(tmp_path: Path) -> None:
    put(tmp_path, "A.png", "a.txt", "A.caption", "Bc.png", "bc.txt", "BC.txt", "d\u00e9.png", "D\u00e9.png", "D\u00c9.txt")
    found = captions_among(files_in(tmp_path), find_images(tmp_path))
    assert [file.name for file in found.values()] == ["A.caption"]
    another, alone = sorted(unused(tmp_path), reverse=True)
    assert another.endswith("caption file: a.txt.")
    assert alone.endswith("are not used: BC.txt, D\u00c9.txt, bc.txt.")


def test_what_can_be_read_here_is_not_spoken_of(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    put(tmp_path, "01.heic", "01.txt")
    assert unused(tmp_path) == []


def test_an_empty_caption_is_named(tmp_path: Path) -> None:
    put(tmp_path, "01.png", "02.png", "03.png")
    for name, content in (("01.txt", b""), ("02.txt", b"\xef\xbb\xbf \r\n"), ("03.txt", b"a hat")):
        (tmp_path / name).write_bytes(content)
    (warning,) = unused(tmp_path)
    assert warning.startswith("These caption files are empty: 01.txt, 02.txt. ")


def test_of_many_some_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "a.txt", *(f"{number}.txt" for number in range(8)))
    assert unused(tmp_path)[0].endswith("not used: 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 3 more.")


def test_other_caption_files_than_those_asked_for_are_not_used(tmp_path: Path) -> None:
    put(tmp_path, "01.png", "01.txt", "01.tags")
    assert unused(tmp_path, extension=".tags") == ["Not used, because captions of this dataset end with .tags: 01.txt."]


@pytest.mark.usefixtures("without_image_plugins")
def test_of_a_folder_that_is_read_with_its_sub_folders_theirs_are_named_with_them(tmp_path: Path) -> None:
    put(tmp_path, "more/a.png", "more/a.txt", "more/b.txt", "more/c.heic")
    package, caption = unused(tmp_path, recursive=True)
    assert package.startswith("Not used: 1 .heic file.")
    assert caption.endswith(f": {Path('more/b.txt')}.")


def test_a_sub_folder_that_is_used_for_something_else_is_not_spoken_of(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "masks/a.png")
    assert unused(tmp_path, apart_from=[tmp_path / "masks"]) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a Windows without named pipes")
def test_pipes_folders_and_links_in_circles_are_no_files(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "a.txt", "folder.png/b.png")
    for name in ("pipe.png", "pipe.txt", "a_att.png", "a.png.txt"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    (tmp_path / "around").symlink_to(tmp_path, target_is_directory=True)
    assert find_images(tmp_path) == [tmp_path / "a.png"]
    assert find_masks(tmp_path) == {"a": tmp_path / "a.png"}
    assert masks_beside(tmp_path) == {}
    assert list(files_below(tmp_path)) == [tmp_path / name for name in ("a.png", "a.txt", "folder.png/b.png")]
    folders, others, below = unused(tmp_path)
    assert folders == "Not used, because they are folders: folder.png."
    assert others.endswith("not regular files: a.png.txt, a_att.png, itself.png, pipe.png, pipe.txt.")
    assert below == "Images in subfolders are not used: folder.png (1 image)."


def test_of_very_many_sub_folders_and_images_only_some_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "MOST_FILES", 5)
    monkeypatch.setattr(image_files, "MOST_FOLDERS", 3)
    put(tmp_path, "01.png", "a/1.png", "b/1.txt", *(f"b/{name}/1.png" for name in "abcdefg"), "c/1.png", "d/1.png")
    assert unused(tmp_path) == [
        "Images in subfolders are not used: a (1 image), b (at least 2 images), c (1 image) and others."
    ]
    monkeypatch.setattr(image_files, "MOST_SECONDS", -1)
    assert unused(tmp_path) == []
