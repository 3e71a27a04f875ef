"""Ctrl-C before the first step: nothing is written, and it does not take until all images are read."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ti_trainer import tiny_model

MANY = 600  # far more than are read while a signal travels
TRAINED_ON = MANY - 10  # the others are held out


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to one process there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_while_images_are_read_ends_with_one_line_and_leaves_nothing(
    number: signal.Signals, start: Callable[..., subprocess.Popen[str]], word: Path, tmp_path: Path
) -> None:
    content = (tiny_model.DEMO / "01.png").read_bytes()
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "0.png").write_bytes(content)
    for count in range(1, MANY):
        os.link(tmp_path / "many" / "0.png", tmp_path / "many" / f"{count}.png")
    before = word.read_bytes()
    process = start("train", "thing", "--images", "many", cwd=tmp_path)
    read = ""
    while not re.search(rf" [1-9]\d*/({MANY}|{TRAINED_ON}) ", read):
        read += (letter := process.stderr.read(1))
        assert letter, read
    process.send_signal(number)
    out, rest = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), rest
    assert "Traceback" not in rest
    *_, last = rest.splitlines()
    assert last.split("\r")[-1].strip() == "Stopped before the first step: nothing was changed."
    assert f"{TRAINED_ON}/{TRAINED_ON}" not in rest
    assert word.read_bytes() == before
    assert not (tmp_path / "textual_inversion").exists()
