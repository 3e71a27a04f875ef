"""What the panel Preprocess shows of a photo beforehand."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

from PIL import Image

from ti_trainer.preprocess.transforms import Result
from ti_trainer.ui.panels.preprocess_progress import row


def test_what_a_mask_lets_count_stands_beside_its_image(tmp_path: Path) -> None:
    photo = tmp_path / "a.png"
    Image.new("RGB", (640, 320), "red").save(photo)
    plain = Result("", Image.new("RGB", (320, 160), "red"), Image.linear_gradient("L").resize((320, 160)))
    flipped = Result("-flipped", plain.image, plain.mask)
    html = row(photo, [Result("-debug", plain.image), plain, flipped], "")
    assert re.findall(r'alt="([^"]+)"', html) == [
        "a.png",
        "focal points",
        "320 x 160",
        "mask",
        "320 x 160, flipped",
        "mask, flipped",
    ]
    shown = [Image.open(io.BytesIO(base64.b64decode(each))) for each in re.findall(r"base64,([^\"]+)", html)]
    assert shown[3].size == (264, 132)
    dark, light = (shown[3].convert("L").getpixel((132, at)) for at in (2, 129))
    assert light - dark > 200


def test_a_photo_that_is_refused_has_the_reason_in_its_row(tmp_path: Path) -> None:
    assert "a.png would be skipped: its mask is round" in row(tmp_path / "a.png", [], "its mask is round")
