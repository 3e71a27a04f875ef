"""Images that were uploaded to the page, copied into a folder of their own: under safe names, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import TinyHost
from PIL import Image

from ti_trainer.errors import ConfigError, DatasetError
from ti_trainer.runs.uploads import Uploads


@pytest.fixture
def uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "gradio"
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    return folder


def image(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(path)
    return path


def test_images_and_captions_are_kept_under_safe_names_and_the_rest_is_named(uploaded: Path, tmp_path: Path) -> None:
    files = [
        image(uploaded / "a" / "cat.png", 1),
        image(uploaded / "b" / "cat.png", 2),
        image(uploaded / "c" / "CAT.PNG", 3),
        image(uploaded / "d" / "wei*rd:name?.jpg", 4),
        image(uploaded / "e" / "con.png", 5),
        image(uploaded / "f" / (200 * "x" + ".png"), 6),
    ]
    for name, text in (("a/cat.txt", "first"), ("b/cat.txt", "second"), ("g/alone.txt", "no image")):
        (uploaded / name).parent.mkdir(exist_ok=True)
        files.append(uploaded / name)
        files[-1].write_text(text)
    for name in ("notes.pdf", "page.html", "fake.png"):
        files.append(uploaded / name)
        files[-1].write_bytes(b"<script>")
    uploads = Uploads.of(files)
    assert len(uploads.images) == 6
    assert uploads.about_refused.startswith("Not used: notes.pdf (not an image), page.html (not an image), fake.png (")
    assert "alone.txt (no image of this name)" in uploads.about_refused
    host = TinyHost(tmp_path)
    folder = uploads.keep(host, "my-cat")
    assert folder == host.log_dir.resolve() / "images" / "my-cat"
    assert {path.name: path.read_text() for path in folder.glob("*.txt")} == {"cat.txt": "first", "cat_2.txt": "second"}
    names = {"cat.png", "cat_2.png", "CAT_3.png", "wei_rd_name_.jpg", "_con.png", 100 * "x" + ".png"}
    assert {path.name for path in folder.iterdir() if path.suffix != ".txt"} == names
    assert (folder / "cat_2.png").read_bytes() == files[1].read_bytes()
    assert uploads.keep(host, "my-cat") == folder, "the same files again"
    assert Uploads.of(files[:2]).keep(host, "my-cat").name == "my-cat-2"


def test_nothing_is_read_or_written_elsewhere(uploaded: Path, tmp_path: Path) -> None:
    secret = image(tmp_path / "private" / "secret.png")
    (uploaded / "x").mkdir(parents=True)
    (uploaded / "x" / "link.png").symlink_to(secret)
    for path in (secret, uploaded / "x" / "link.png", uploaded / ".." / "private" / "secret.png"):
        with pytest.raises(ConfigError, match="is not an uploaded file"):
            Uploads.of([path])
    host, uploads = TinyHost(tmp_path), Uploads.of([image(uploaded / "a" / "cat.png")])
    for name in ("../x", "a/b", "..", "", ".hidden", "CON"):
        with pytest.raises(ConfigError):
            uploads.keep(host, name)
    assert not host.log_dir.exists()
    with pytest.raises(DatasetError, match="None of the uploaded files is an image"):
        Uploads.of([]).keep(host, "x")
