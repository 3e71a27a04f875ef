"""spread on the embedded model: once, and with a way back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def test_masks_are_spread_once_and_what_they_were_is_kept(cli: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)).save(folder / "a.png")
    painted = Image.new("L", (128, 96))
    painted.paste(255, (0, 0, 64, 96))
    painted.save(folder / "a_att.png")
    before = (folder / "a_att.png").read_bytes()
    done = cli("spread", "images")
    assert done.code == 0, done.err
    assert "1 mask extended" in done.out
    assert (folder / "a_att.unspread").read_bytes() == before
    with Image.open(folder / "a_att.png") as now:
        assert (now.mode, now.size) == ("L", (128, 96))
    now = (folder / "a_att.png").read_bytes()
    assert now != before
    again = cli("spread", "images")
    assert (again.code, (folder / "a_att.png").read_bytes()) == (0, now)
    assert "a_att.png was spread before" in again.err
    assert again.out.strip() == "No mask was extended."
    assert cli("spread", "images", "--again").code == 0
    assert (folder / "a_att-2.unspread").read_bytes() == now


def test_a_folder_without_masks_is_refused_in_one_line(cli: Callable, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    done = cli("spread", ".")
    assert (done.code, len(done.errors)) == (1, 1)
    assert "a_att.png" in done.errors[0]
