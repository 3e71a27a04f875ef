"""Masks as they are painted: their size, what comes from a page, saved and taken away with nothing lost."""

from __future__ import annotations

import base64
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ti_trainer.data import mask_files
from ti_trainer.data.images import Frame, load_image
from ti_trainer.data.left_out import bring_back
from ti_trainer.data.mask_names import ATTENTION
from ti_trainer.data.masks import masks_beside
from ti_trainer.errors import ConfigError, DatasetError


def image(folder: Path, name: str = "a.png", size: tuple[int, int] = (60, 40)) -> Path:
    path = folder / name
    Image.new("RGB", size, (200, 90, 40)).save(path)
    return path


def grey(size: tuple[int, int] = (60, 40), value: int = 127) -> Image.Image:
    return Image.new("L", size, value)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_mask_is_as_large_as_its_image_held_upright_but_not_huge(tmp_path: Path) -> None:
    assert mask_files.size_of_mask(image(tmp_path)) == (60, 40)
    assert mask_files.size_of_mask(image(tmp_path, size=(4000, 3000))) == (1024, 768)
    assert mask_files.size_of_mask(image(tmp_path, size=(5000, 1))) == (1024, 1)
    lying, exif = tmp_path / "lying.jpg", Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (2000, 1000)).save(lying, exif=exif)
    assert mask_files.size_of_mask(lying) == (512, 1024)
    assert mask_files.to_paint_on(lying).size == (512, 1024)


def test_what_is_packed_comes_back_and_nothing_else_is_taken() -> None:
    mask = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60), np.uint8))
    text = mask_files.packed(mask)
    assert mask_files.unpacked(text, (60, 40)).tobytes() == mask.tobytes()
    bomb = base64.b64encode(zlib.compress(bytes(200_000_000))).decode()
    png = "data:image/png;base64,iVBORw0KGgo="
    for wrong in (bomb, png, "", "????", base64.b64encode(b"grey").decode(), mask_files.packed(grey((60, 39)))):
        with pytest.raises(ConfigError, match="pen"):
            mask_files.unpacked(wrong, (60, 40))


def test_a_name_is_looked_up_and_never_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    path = image(folder)
    image(tmp_path, "outside.png")
    mask_files.save_mask(path, grey(), ATTENTION)
    assert mask_files.image_of(folder, "a.png") == path
    for wrong in ("../outside.png", str(tmp_path / "outside.png"), "", "a_att.png", "./a.png"):
        with pytest.raises(DatasetError, match="no image"):
            mask_files.image_of(folder, wrong)


def test_a_saved_mask_counts_in_training_as_it_was_painted(tmp_path: Path) -> None:
    path, painted = image(tmp_path, size=(64, 64)), grey((64, 64), 0)
    painted.paste(255, (0, 0, 32, 64))
    painted.paste(127, (32, 0, 48, 64))
    saved = mask_files.save_mask(path, painted, ATTENTION)
    assert saved.name == "a_att.png"
    counts = load_image(path, Frame(None), saved).counts
    assert [counts[0, 10, x].item() for x in (3, 40, 60)] == [5, 1, 0]
    assert mask_files.to_edit(saved, path).tobytes() == painted.tobytes()


def test_a_mask_in_another_format_makes_room(tmp_path: Path) -> None:
    path = image(tmp_path)
    grey().save(tmp_path / "a-masklabel.webp")
    saved = mask_files.save_mask(path, grey(value=9), "-masklabel")
    assert names(tmp_path) == ["a-masklabel.png", "a.png", "left out/masks/a-masklabel.webp"]
    assert masks_beside(tmp_path) == {"a": saved}


@pytest.mark.parametrize(("kind", "other"), [("_att", "-masklabel"), ("-masklabel", "_att")])
def test_the_kind_that_was_painted_is_written_whatever_lies_there(tmp_path: Path, kind: str, other: str) -> None:
    path = image(tmp_path)
    assert mask_files.save_mask(path, grey(), kind).name == f"a{kind}.png"
    assert mask_files.spec_of(mask_files.mask_of(path)) == kind
    saved = mask_files.save_mask(path, grey(value=9), other)
    assert masks_beside(tmp_path) == {"a": saved}
    assert names(tmp_path) == sorted(["a.png", saved.name, f"left out/masks/a{kind}.png"])


@pytest.mark.parametrize("kind", ["", "_ATT", "/../../a_att", "-masklabel.png"])
def test_a_kind_that_there_is_not_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ConfigError, match="expected one of _att, -masklabel"):
        mask_files.save_mask(image(tmp_path), grey(), kind)
    assert names(tmp_path) == ["a.png"]


def spread_once(folder: Path, kind: str) -> list[str]:
    grey().save(folder / f"a{kind}.png")
    left = [f"a{kind}-2.unspread", f"a{kind}.unspread"]
    for name in left:
        (folder / name).write_bytes(b"as it was")
    return left


@pytest.mark.parametrize("kind", ["_att", "-masklabel"])
def test_a_mask_painted_anew_was_not_spread_and_one_retouched_was(tmp_path: Path, kind: str) -> None:
    path, left = image(tmp_path), spread_once(tmp_path, kind)
    others = [tmp_path / f"a2{kind}.unspread", tmp_path / f"a{kind}-later.unspread"]
    for other in others:
        other.write_bytes(b"of another image")
    mask_files.save_mask(path, grey(value=9), kind)
    assert all((tmp_path / name).exists() for name in left)
    mask_files.save_mask(path, grey(value=9), kind, anew=True)
    assert not any((tmp_path / name).exists() for name in left)
    assert all((tmp_path / "left out/masks" / name).read_bytes() == b"as it was" for name in left)
    assert all(other.exists() for other in others)
    left = spread_once(tmp_path, kind)
    (tmp_path / f"a{kind}.png").unlink()  # by hand
    mask_files.save_mask(path, grey(value=9), kind)
    assert not any((tmp_path / name).exists() for name in left)


def test_what_was_spread_goes_with_its_mask(tmp_path: Path) -> None:
    path, left = image(tmp_path), spread_once(tmp_path, "_att")
    moved = [each.name for each in mask_files.take_away(path)]
    assert sorted(moved) == sorted(["a_att.png", *left])
    left = spread_once(tmp_path, "_att") + spread_once(tmp_path, "-masklabel")
    mask_files.save_mask(path, grey(), "-masklabel")
    assert {name for name in left if (tmp_path / name).exists()} == {"a-masklabel.unspread", "a-masklabel-2.unspread"}


def test_who_marks_nothing_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="The mask is empty"):
        mask_files.save_mask(image(tmp_path), grey(value=0), ATTENTION)
    assert names(tmp_path) == ["a.png"]


def test_masks_taken_away_are_kept_each_and_do_not_come_back_as_images(tmp_path: Path) -> None:
    path = image(tmp_path)
    grey().save(tmp_path / "a-masklabel.png")
    for value in (50, 60):
        Image.new("L", (60, 40), value).save(tmp_path / "a_att.png")
        mask_files.take_away(path)
        assert mask_files.mask_of(path) is None
    kept = ["left out/masks/a-masklabel.png", "left out/masks/a_att (2).png", "left out/masks/a_att.png"]
    assert names(tmp_path) == ["a.png", *kept]
    assert mask_files.take_away(path) == []
    assert bring_back(tmp_path) == ([], [])
    assert names(tmp_path) == ["a.png", *kept]


def test_a_mask_that_cannot_be_edited_says_why(tmp_path: Path) -> None:
    path, mask = image(tmp_path), tmp_path / "a_att.png"
    grey((40, 60)).save(mask)
    with pytest.raises(DatasetError, match="expected the aspect ratio of 60 x 40"):
        mask_files.to_edit(mask, path)
    mask.write_bytes(b"nothing")
    with pytest.raises(DatasetError, match="cannot be read"):
        mask_files.to_edit(mask, path)
