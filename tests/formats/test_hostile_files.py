"""Law 8: a malicious pickle is refused and nothing of it runs; bombs, ruins and strangers are one clear error each."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats import read, write
from ti_trainer.formats.card import _noise
from ti_trainer.formats.checks import MAX_BYTES
from ti_trainer.formats.webui_optimizer import read_optimizer

INTEROP = Path(__file__).parents[1] / "fixtures" / "interop"
FILES_OF_TENSORS = (".pt", ".bin", ".safetensors")
LYING_HEADER = b'{"a":{"dtype":"F32","shape":[99999999,768],"data_offsets":[0,16]}}    '


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def zipped(pickled: bytes, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")


SAVERS: dict[str, Callable[[object, Path], None]] = {
    "torch.save": torch.save,
    "torch.save, old": lambda data, path: torch.save(data, path, _use_new_zipfile_serialization=False),
    "pickle": lambda data, path: path.write_bytes(pickle.dumps(data, 2)),
    "pickle, protocol 0": lambda data, path: path.write_bytes(pickle.dumps(data, 0)),
    "pickle, protocol 4": lambda data, path: path.write_bytes(pickle.dumps(data, 4)),
    "zip, protocol 4": lambda data, path: zipped(pickle.dumps(data, 4), path),
}


@pytest.mark.parametrize("ending", [".pt", ".bin", ".safetensors", ".png", ".pt.optim"])
@pytest.mark.parametrize("saver", SAVERS)
def test_malicious_pickles_are_refused_and_nothing_runs(saver: str, ending: str, make, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    vectors = torch.zeros(2, 768)
    for data in (
        Malicious(marker),
        {"string_to_param": {"*": vectors}, "name": "a", "step": Malicious(marker)},
        {"string_to_param": {"*": Malicious(marker)}, "name": "a"},
        {"hash": "0000", "optimizer_state_dict": {"state": Malicious(marker)}},
    ):
        path = tmp_path / f"a{ending}"
        SAVERS[saver](data, path)
        with pytest.raises(EmbeddingFormatError, match="cannot be read as an embedding"):
            read_optimizer(tmp_path / "a.pt", make()) if ending == ".pt.optim" else read(path)
        assert not marker.exists()
    pickle.loads(pickle.dumps(Malicious(marker)))  # noqa: S301 (our own: shows that the marker would have been there)
    assert marker.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.",  # GLOBAL, REDUCE
        b"(iposix\nsystem\n.",  # INST
        b"\x80\x02(cposix\nsystem\nX\x04\x00\x00\x00trueo.",  # OBJ
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",  # STACK_GLOBAL
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aX\x01\x00\x00\x00bsb0.",  # BUILD on a function
        b"\x80\x02}r\xff\xff\xff\xff.",  # a memo of 2^32 entries
        b"\x80\x02]q\x00" + b"h\x00h\x00\x86q\x00" * 2000 + b".",  # 2^2000 lists, if anyone walks through them
        b"\x80\x02" + b"]" * 4000 + b"a" * 900 + b".",
        b"\x80\x02)q\x000" + b"h\x00h\x00\x86q\x000" * 64 + b"}h\x00K\x01s.",  # a key of 2^64 tuples, if anyone hashes it
        b"\x80\x02" + b"(" * 10_000_000,
        b"\x80\x02X\xff\xff\xff\x7f",  # a text of 2 GB that is not there
        b"\x80\x02R.",
        b"\x80\x02t.",
        b"\x80\x02" + b"]" * 200 + b"a" * 199 + b".",  # nested deeper than anyone can copy
        b"\x80\x02N\x86.",  # a pair of one
        b"\x80\x020N.",  # takes away what is not there
        b"\x80\x02ctorch\nFloatStorage\n)R.",  # calling a storage
    ],
)
def test_pickle_code_that_no_embedding_has_is_refused(code: bytes, tmp_path: Path) -> None:
    zipped(code, tmp_path / "a.pt")
    with pytest.raises(EmbeddingFormatError):
        read(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(code)
    with pytest.raises(EmbeddingFormatError):
        read(tmp_path / "b.pt")


def test_what_a_pickle_takes_away_again_is_passed_over(make, assert_same, tmp_path: Path) -> None:
    write(make(), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as whole, zipfile.ZipFile(tmp_path / "b.pt", "w") as popping:
        for name in whole.namelist():
            content = whole.read(name)
            popping.writestr(name, content[:2] + b"N0" + content[2:] if name.endswith("data.pkl") else content)
    assert_same(read(tmp_path / "b.pt"), make())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (b"QK\x01K\x02K@", "damaged"),
        (b"QK\x00X\x01\x00\x00\x00aJ\x00\xa3\xe1\x11", "shape is no numbers"),  # "a" times 300 million
    ],
)
def test_tensors_that_reach_beyond_their_numbers_are_refused(change: bytes, message: str, tmp_path: Path) -> None:
    """A stride of 0 makes a big tensor of one number; an offset reads a neighbour's memory."""
    one = torch.ones(1)
    torch.save({"a": one.as_strided((500, 768), (0, 0))}, tmp_path / "expanded.pt")
    with pytest.raises(EmbeddingFormatError, match="made of 1 numbers"):
        read(tmp_path / "expanded.pt")
    torch.save({"a": torch.ones(2, 64)}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "shifted.pt", "w") as shifted:
        for name in whole.namelist():
            content = whole.read(name)
            if name.endswith("data.pkl"):
                assert content.count(b"QK\x00K\x02K@") == 1  # storage, offset 0, size 2 x 64
                content = content.replace(b"QK\x00K\x02K@", change)
            shifted.writestr(name, content)
    with pytest.raises(EmbeddingFormatError, match=message):
        read(tmp_path / "shifted.pt")


def test_bombs_are_refused_before_they_go_off(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "zip.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (MAX_BYTES + 1))
    text = PngInfo()
    text.add_text("sd-ti-embedding", base64.b64encode(b"[" * 100_000).decode())
    Image.new("RGB", (8, 8)).save(tmp_path / "nested.png", pnginfo=text)
    text = PngInfo()
    text.add_text("sd-ti-embedding", "A" * 40_000_000, zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "text.png", pnginfo=text)
    text = PngInfo()
    text.add_text("sd-ti-embedding", "A" * 23_000_000)
    Image.new("RGB", (8, 8)).save(tmp_path / "long.png", pnginfo=text)
    Image.new("L", (9000, 9000)).save(tmp_path / "large.png")
    (tmp_path / "huge.png").write_bytes(png_header(100_000, 100_000))
    hidden_in_pixels(zlib.compress(b" " * 40_000_000, 9), tmp_path / "pixels.png")
    safetensors.torch.save_file({"a": torch.zeros(1001, 8)}, tmp_path / "many.safetensors")
    with (tmp_path / "big.safetensors").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(EmbeddingFormatError, match=f"^{path.name} cannot be read as an embedding"):
            read(path)


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 1000)
    chunks = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (header, data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def hidden_in_pixels(data: bytes, path: Path) -> None:
    """A card, to the last pixel, that holds `data`."""
    import numpy as np

    block = np.resize(np.frombuffer(data, np.uint8), (64, len(data) // 192 + 1, 3))
    noise = _noise(block.shape)
    gap = np.zeros((64, 1, 3), np.uint8)
    Image.fromarray(np.concatenate([block & 15 ^ noise, gap, gap, block >> 4 ^ noise], axis=1)).save(path)


def test_the_pixel_bomb_is_a_card_but_for_its_size(make, assert_same, tmp_path: Path) -> None:
    with io.BytesIO() as saved:
        vectors = make().vectors["clip_l"].tolist()
        saved.write(json.dumps({"string_to_param": {"*": {"TORCHTENSOR": vectors}}, "name": "my-cat"}).encode())
        hidden_in_pixels(zlib.compress(saved.getvalue()), tmp_path / "a.png")
    assert_same(read(tmp_path / "a.png"), make(), vectors_only=True)


@pytest.mark.parametrize("name", sorted(path.name for path in INTEROP.iterdir() if path.suffix in FILES_OF_TENSORS))
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_files_that_were_cut_short_are_refused(name: str, share: float, tmp_path: Path) -> None:
    content = (INTEROP / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(EmbeddingFormatError, match="cannot be read as an embedding"):
        read(tmp_path / name)


def test_flipped_bits_never_cause_another_error(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for name in ("webui-two.pt", "rinongal-three.pt", "kohya-sd1.safetensors", "card-sd1-lossless.webp"):
        content = (INTEROP / name).read_bytes()
        for _ in range(40):
            damaged = bytearray(content)
            for position in torch.randint(min(len(content), 2000), (3,), generator=generator).tolist():
                damaged[position] ^= 1 << (position % 8)
            (tmp_path / name).write_bytes(damaged)
            try:
                read(tmp_path / name)
            except EmbeddingFormatError:
                continue


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.safetensors", b"Just some words, renamed."),
        ("text.pt", b"Just some words, renamed."),
        ("page.png", b"<html>404</html>"),
        ("header.safetensors", struct.pack("<Q", 2**60) + b"{}"),
        ("header-2.safetensors", struct.pack("<Q", 2) + b"{}"),
        ("header-3.safetensors", struct.pack("<Q", len(LYING_HEADER)) + LYING_HEADER + b"\0" * 16),
        ("empty.pt", b""),
        ("archive.pt", b"PK\x05\x06" + b"\0" * 18),
    ],
)
def test_strangers_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EmbeddingFormatError, match=f"^{name} cannot be read as an embedding"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.ones(1, 8), "b": torch.ones(1, 8)}, "2 terms"),
        ({f"IN{i:02}": torch.ones(1, 768) for i in range(16)}, "16 terms"),
        ({"emp_params": torch.ones(1, 768), "emp_params_out": torch.ones(1, 768)}, "output embeddings"),
        ({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(3, 1280)}, "different numbers of vectors"),
        (
            {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280), "t5": torch.ones(2, 4096)},
            "Flux or Stable Diffusion 3",
        ),
        ({"a": torch.ones(1, 2, 768)}, r"shape \(1, 2, 768\)"),
        ({"a": torch.ones(2, 768, dtype=torch.int64)}, "int64"),
        ({"a": torch.ones(0, 768)}, r"shape \(0, 768\)|buffer length"),
        ({"a": torch.tensor(1.0)}, r"shape \(\)"),
    ],
)
def test_tensors_that_are_no_embedding_are_refused(tensors, message: str, tmp_path: Path) -> None:
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        with pytest.raises(EmbeddingFormatError, match=message):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"string_to_param": {"*": torch.ones(1, 8), "cat": torch.ones(1, 8)}, "name": "a"}, r"2 terms \(\*, cat\)"),
        ({"string_to_param": {}, "name": "a"}, "0 terms"),
        ({"string_to_param": {"*": [1.0]}, "name": "a"}, "type list"),
        ({"string_to_param": None}, "damaged"),
        ({"a": "text"}, "type str"),
        ([1, 2], "list of other values"),
        ({}, "0 terms"),
    ],
)
def test_pickles_of_other_things_are_refused(data, message: str, tmp_path: Path) -> None:
    torch.save(data, tmp_path / "a.pt")
    with pytest.raises(EmbeddingFormatError, match=message):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "note",
    [
        "[" + "[]," * 150_000 + "0]",
        "[" * 150_000,
        "[" + "0," * 150_000 + "0]",
        "9" * 3000,
        "[" + "9" * 3000 + "]",
    ],
    ids=["lists", "nested", "numbers", "digits", "digits-in-a-list"],
)
def test_notes_that_would_be_too_much_stay_text(note: str, make, tmp_path: Path) -> None:
    """Brackets that are written as \\u005b cannot be counted in the header."""
    content = safetensors.torch.save(
        {"a": make().vectors["clip_l"]}, {"ti_trainer": "1", "step": "9" * 3000, "note": "NOTE"}
    )
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip().replace(b"NOTE", note.replace("[", "\\u005b").encode())
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
    embedding = read(tmp_path / "a.safetensors")
    assert (embedding.info["note"], embedding.step) == (note, 0)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(EmbeddingFormatError, match="There is no file"):
        read(tmp_path / "a.pt")
    with pytest.raises(EmbeddingFormatError, match=r"holds no learned_embeds\.safetensors"):
        read(tmp_path)


def disk_full(*_: object) -> None:
    raise OSError("disk full")


def test_a_failed_write_leaves_what_was_there(make, monkeypatch, tmp_path: Path) -> None:
    write(make(), tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()
    monkeypatch.setattr(zipfile.ZipFile, "writestr", disk_full)
    with pytest.raises(OSError, match="disk full"):
        write(make(num_vectors=5), tmp_path / "a.pt")
    monkeypatch.undo()
    assert (tmp_path / "a.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_no_unpickler_is_even_imported() -> None:
    """The package asks neither pickle nor torch.load to read anything."""
    source = "".join(path.read_text() for path in Path(sys.modules["ti_trainer.formats"].__file__).parent.glob("*.py"))
    assert "import pickle\n" not in source
    assert not re.search(r"(?<!safetensors\.)torch\.load\(", source)


def test_an_embedding_larger_than_any_is_refused_unread(tmp_path: Path) -> None:
    whole = torch.zeros(MAX_BYTES // 4)
    torch.save({"string_to_param": {"*": whole[:7680].reshape(10, 768)}, "beside": whole}, tmp_path / "a.pt")
    with pytest.raises(EmbeddingFormatError, match=f"has more than {MAX_BYTES} bytes"):
        read(tmp_path / "a.pt")
