"""The sheet of photos and what becomes of them: whatever their names and captions are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ti_trainer.preprocess.contact_sheet import ROW_PX, sheet
from ti_trainer.preprocess.transforms import Result


def written_below(page: Image.Image) -> np.ndarray:
    """Where the first row's text is, (H, W)."""
    return np.asarray(page.convert("L"))[ROW_PX:] < 128


@pytest.mark.parametrize("name", ["写真.png", "фото ö.png", "🦊.png", "plain.png"])
def test_a_name_in_any_script_is_drawn(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (60, 40), "red").save(tmp_path / name)
    page = sheet([(tmp_path / name, [Result("", Image.new("RGB", (32, 32), "blue"))], "a caption")])
    text = written_below(page)
    assert text.any()
    Image.new("RGB", (60, 40), "red").save(tmp_path / "x.png")
    nameless = written_below(sheet([(tmp_path / "x.png", [], "")]))
    assert text.sum() > 2 * nameless.sum(), "its size and caption can be read, too"


def test_a_photo_that_fails_has_a_row_with_the_reason(tmp_path: Path) -> None:
    page = sheet([(tmp_path / "ダメ.png", [], "cannot identify it — 写真")])
    assert page.height < ROW_PX
    assert (np.asarray(page.convert("L")) < 128).any()
