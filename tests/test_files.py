"""Files are written whole or not at all, under names that work everywhere."""

from __future__ import annotations

import errno
import stat
import sys
from pathlib import Path

import pytest

from ti_trainer.errors import ConfigError, explained
from ti_trainer.files import atomic, checked_name, described, entered_path, is_within, write_bytes


def test_a_file_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"
    write_bytes(path, b"first, and longer")
    write_bytes(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_while_writing_leaves_what_was_there_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"first")

    def write() -> None:
        with atomic(path) as new:
            new.write_bytes(b"half of the sec")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_says_what_where_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "folder").write_bytes(b"")
    with pytest.raises(OSError) as caught:  # noqa: PT011 - FileExistsError or NotADirectoryError
        write_bytes(tmp_path / "folder" / "file.bin", b"")
    assert str(tmp_path / "folder") in explained(caught.value)
    assert "A file is in the place of a folder" in explained(caught.value)
    temporary = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / ".file-x1y2.bin"))
    said = explained(described(temporary, tmp_path / "file.bin"))
    assert said.startswith(f"Permission denied: {tmp_path / 'file.bin'}. Allow this program's user")
    assert explained(ConfigError("Enter a name.")) == "Enter a name."


def test_until_it_is_whole_the_old_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"first")
    with atomic(path) as new:
        new.write_bytes(b"second")
        assert path.read_bytes() == b"first"
        assert new.parent == path.parent
        assert new.suffix == path.suffix
        assert new.name.startswith(".")  # passed over by whoever lists the folder meanwhile
    assert path.read_bytes() == b"second"


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX's")
def test_others_may_read_it(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file.bin", b"")
    assert stat.S_IMODE((tmp_path / "file.bin").stat().st_mode) == 0o644


@pytest.mark.parametrize("name", ["my-cat", "Käthe", "a b", "v1.5_x", "猫", "console", "1"])
def test_names_that_work_everywhere_are_taken_as_they_are(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        " cat",
        "cat ",
        "cat\n",
        ".cat",
        "cat.",
        "..",
        "a/b",
        "a\\b",
        "a:b",
        "a*b",
        'a"b',
        "a<b",
        "a,b",
        "(cat)",
        "a\nb",
        "a\0b",
    ],
)
def test_names_that_would_be_trouble_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"The name .* (cannot be used|contains)"):
        checked_name(name)


@pytest.mark.parametrize("name", ["con", "NUL", "aux.old", "COM1", "lpt9.x", "con .x", "LPT¹"])
def test_names_that_windows_keeps_for_itself_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="reserved by Windows"):
        checked_name(name)


@pytest.mark.parametrize(
    "text",
    [
        "/a b/c",
        "  /a b/c \t",
        '"/a b/c"',
        "'/a b/c' ",
        "\u201c/a b/c\u201d",
        "\u202a/a b/c\u202c",
        '\u202a"/a b/c"',
        '" /a b/c "',
        "file:///a%20b/c",
        "FILE://localhost/a%20b/c",
        "file:/a%20b/c",
        "'file:///a b/c'",
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="paths as POSIX has them")
def test_a_path_is_understood_as_people_paste_it(text: str) -> None:
    assert entered_path(text) == Path("/a b/c")


def test_a_path_keeps_what_belongs_to_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert entered_path("'~/cat'") == tmp_path / "cat"
    assert entered_path("Rock 'n' roll") == Path("Rock 'n' roll")
    assert entered_path("100%25 it's") == Path("100%25 it's")
    assert entered_path("file") == Path("file")
    assert {entered_path(each) for each in (None, "", " ", "''", '"')} == {Path()}
    assert entered_path("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")


@pytest.mark.parametrize("text", ["a\0b", "file://elsewhere/share/x"])
@pytest.mark.skipif(sys.platform == "win32", reason="there the second is a share")
def test_what_can_be_no_path_here_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        entered_path(text)


def test_a_file_that_was_uploaded_is_nobodys_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads = tmp_path / "uploads"
    (uploads / "hash").mkdir(parents=True)
    (tmp_path / "link").symlink_to(uploads)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(uploads))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temp"))
    ways = (uploads, uploads / "hash" / "x.pt", tmp_path / "a" / ".." / "uploads" / "x.pt", tmp_path / "link" / "x.pt")
    for path in (*ways, tmp_path / "temp" / "gradio" / "x.pt", uploads.as_uri()):
        with pytest.raises(ConfigError, match="uploaded"):
            entered_path(str(path))
    for path in (tmp_path, tmp_path / "uploads-of-mine", tmp_path / "loop" / "x"):
        assert entered_path(str(path)) == path
        assert not is_within(path, uploads)


LONG = ["x" * 201, "x" * 226, "x" * 250, "猫" * 67, "é" * 101]


@pytest.mark.parametrize("name", LONG, ids=len)
def test_names_too_long_for_the_files_of_a_run_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"bytes, expected at most 200.*choose a shorter one"):
        checked_name(name)


@pytest.mark.parametrize("name", ["x" * 200, "猫" * 66])
def test_the_longest_name_leaves_room_for_all_that_comes_after_it(name: str, tmp_path: Path) -> None:
    assert checked_name(name) == name
    for ending in ("-trial64-neg-ema-10000000.safetensors", "-neg.preview.png", "-neg.safetensors.bak"):
        write_bytes(tmp_path / f"{name}{ending}", b"")
    write_bytes(tmp_path / f".{name}-neg.lock.json", b"")
