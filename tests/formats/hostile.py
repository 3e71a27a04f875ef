"""Small files that would exhaust memory or never end, if somebody built what they ask for; and what reading one costs.

Run as a program it reads each file that it is given, each in a process of its own, and prints a JSON line of what that took.
"""

from __future__ import annotations

import base64
import io
import json
import os
import resource
import struct
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

DATA = Path(__file__).parents[1] / "fixtures" / "hostile"
MB = 2**20
IN_ARCHIVES = {
    "key",
    "list",
    "many-dicts",
    "many-texts",
    "long4",
    "long-numbers",
}  # pickles: as a file of a zip archive, too


def hostile_files() -> Iterator[tuple[str, bytes]]:
    """Name and content of each."""
    yield from ((path.name, path.read_bytes()) for path in sorted(DATA.iterdir()) if path.suffix == ".pt")
    yield from _safetensors()
    yield from _pickles()
    yield from _archives()
    yield from _images()


def safetensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def zipped(pickled: bytes) -> bytes:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
        return file.getvalue()


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _safetensors() -> Iterator[tuple[str, bytes]]:
    one = b'{"dtype":"F32","shape":[],"data_offsets":[0,0]}'
    yield "300000-tensors.safetensors", safetensors(b"{" + b",".join(b'"%d":%s' % (i, one) for i in range(300_000)) + b"}")
    yield "90000-tensors.safetensors", safetensors(b"{" + b",".join(b'"%d":%s' % (i, one) for i in range(90_000)) + b"}")
    sizes = b",".join([b"9" * 4000] * 5000)
    yield "huge-shape.safetensors", safetensors(b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,0]}}' % sizes)
    sizes = b",".join([b"9999999999999999999"] * 300_000)
    yield "long-shape.safetensors", safetensors(b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,0]}}' % sizes)
    yield "lists.safetensors", safetensors(b'{"a":[' + b"[]," * 2_500_000 + b"[]]}")
    yield "dicts.safetensors", safetensors(b'{"a":[' + b'{"":0},' * 1_000_000 + b"0]}")
    yield "nested.safetensors", safetensors(b'{"a":' + b"[" * 90_000 + b"]" * 90_000 + b"}")
    yield "digits.safetensors", safetensors(b'{"a":' + b"9" * 7_000_000 + b"}")
    yield (
        "wide-text.safetensors",
        safetensors(b'{"__metadata__":{"a":"' + "𝄞".encode() + b"x" * 8_000_000 + b'"},"a":' + one + b"}"),
    )
    names = b",".join(b'"%s%d":%s' % (b"lora" * 250_000, i, one) for i in range(7))
    yield "long-names.safetensors", safetensors(b"{" + names + b"}")
    yield "same-names.safetensors", safetensors(b"{" + b",".join([b'"a":%s' % one] * 90_000) + b"}")
    yield "long-float.safetensors", safetensors(b'{"a":0.' + b"1" * 8_000_000 + b"}")
    yield "long-floats.safetensors", safetensors(b'{"a":[' + b",".join([b"0." + b"1" * 800 + b"e-300"] * 9_500) + b"]}")
    yield (
        "nested-metadata.safetensors",
        safetensors(b'{"__metadata__":{"a":' + b'{"":' * 90_000 + b"0" + b"}" * 90_000 + b'},"a":' + one + b"}"),
    )
    fp8 = b'{"a":{"dtype":"F8_E4M3","shape":[1000,33000],"data_offsets":[0,33000000]}}'
    yield "fp8.safetensors", safetensors(fp8, b"\0" * 33_000_000)
    fp64 = b'{"a":{"dtype":"F64","shape":[1000,4096],"data_offsets":[0,32768000]}}'
    yield "fp64.safetensors", safetensors(fp64, b"\0" * 32_768_000)


def _pickles() -> Iterator[tuple[str, bytes]]:
    doubled = b")" + b"q\x00" + b"h\x00h\x00\x86q\x00" * 80  # a tuple of 2^80
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n"
    codes = {
        "key": b"}h\x00K\x01s",
        "state": b"}" + text("hash") + b"h\x00s}" + text("optimizer_state_dict") + b"h\x00s",
        "shape": tensor
        + b"(("
        + text("storage")
        + b"ctorch\nFloatStorage\n"
        + text("0")
        + text("cpu")
        + b"K\x01tQK\x00h\x00h\x00tR",
        "ordered": b"ccollections\nOrderedDict\n]h\x00K\x01\x86a\x85R",
        "parameters": b"ctorch.nn.modules.container\nParameterDict\n]h\x00K\x01\x86a\x85R",
        "list": b"h\x00",
    }
    codes = {name: doubled + code for name, code in codes.items()}
    codes["list-in-itself"] = b"]q\x00h\x00a"
    codes["doubled-lists"] = b"]q\x00" + b"0]q\x01h\x00ah\x01h\x00aq\x00" * 60
    number = b"\x8a\xff" + b"\x7f" * 255
    codes |= _codes_that_walk_again(tensor, doubled)
    codes["long-numbers"] = b"]" + (number + b"a") * 15_000
    codes["huge-shape"] = tensor + b"(" + text("a") + b"K\x00(" + number * 15_000 + b"t(" + number * 15_000 + b"tK\x00)tR"
    codes["many-dicts"] = b"](" + b"}" * 3_900_000 + b"e"
    codes["many-texts"] = b"](" + text("𝄞" + "x" * 1_000_000) * 30 + b"e"
    codes["one-text"] = text("𝄞" + "x" * 8_000_000)
    codes["marks"] = b"(" * 8_000_000
    codes["memo"] = b"}" + b"r\xff\xff\xff\xff" * 700_000
    codes["text-that-is-not-there"] = b"X\xff\xff\xff\x7f"
    codes["bytes-that-are-not-there"] = b"\x8e" + b"\xff" * 7 + b"\x7f"
    codes["long4"] = b"\x8b\xff\xff\xff\x7f" + b"\x7f" * 20_000_000
    codes["long-line"] = b"c" + b"a" * 8_000_000
    for name, code in codes.items():
        yield f"{name}.pt", b"\x80\x02" + code + b"."
        if name in IN_ARCHIVES:
            yield f"{name}-zipped.pt", zipped(b"\x80\x02" + code + b".")
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n%s" + text("cpu") + b"J\x00\x00\x00\x01tQ"
    yield "many-storages.pt", magic + b"\x80\x02](" + b"".join(storage % text(str(i)) for i in range(4000)) + b"e."
    keys = b"\x80\x02](" + text("0") * 100_000 + b"e."
    yield "keys.pt", magic + b"\x80\x02" + storage % text("0") + b"." + keys + b"\0" * 8_000_000


def _codes_that_walk_again(tensor: bytes, doubled: bytes) -> dict[str, bytes]:
    """Few instructions, each of which walks through something long that the memo holds, or hashes or compares it."""
    pairs = b"](" + b"".join(text(str(i)) + b"N\x86" for i in range(16_000)) + b"eq\x00"
    ordered, parameter = b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_parameter\n"
    from_type = b"ctorch._tensor\n_rebuild_from_type_v2\n"
    wide = b"(" + b"N" * 60_000 + b"tq\x00"
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x00"
    state = b"}(" + b"".join(text(str(i)) + b"N" for i in range(24_000)) + b"uq\x00"
    colliding = ((i * (2**61 - 1)).to_bytes(11, "little", signed=True) for i in range(45_000))
    return {
        "ordered-again": pairs + ordered + b"q\x01" + b"0h\x01h\x00\x85R" * 12_000,
        "ordered-from-type": pairs + ordered + b"q\x01" + from_type + b"q\x02" + b"0h\x02h\x01Nh\x00\x85\x87R" * 9_000,
        "state-again": state + b"ctorch.nn.modules.container\nParameterDict\n)R" + b"h\x00b" * 30_000,
        "state-of-many": state + b"ctorch.nn.modules.container\nParameterDict\nq\x01" + b"0h\x01)Rh\x00b" * 9_000,
        "arguments-again": wide + parameter + b"q\x01" + b"0h\x01h\x00R" * 9_000,
        "arguments-of-new": wide + parameter + b"q\x01" + b"0h\x01h\x00\x81" * 9_000,
        "arguments-from-type": wide + parameter + b"q\x01" + from_type + b"q\x02" + b"0h\x02h\x01Nh\x00\x87R" * 7_000,
        "text-from-type": text("x" * 3_900_000) + b"q\x00" + parameter + b"q\x01" + from_type + b"h\x01Nh\x00\x87R",
        "list-in-itself-from-type": from_type + b"]q\x00(" + from_type + b"Nh\x00e0" + from_type + b"Nh\x00\x87R",
        "storage-again": storage + b"N" * 60_000 + b"tq\x00" + b"0h\x00Q" * 9_000,
        "from-type-key": doubled + from_type + b"h\x00N)\x87R",
        "later-dtype-key": doubled + tensor.replace(b"_v2", b"_v3") + b"(" + storage + b"tQK\x00))NNh\x00tR",
        "colliding-keys": b"}(" + b"".join(b"\x8a\x0b" + number + b"N" for number in colliding) + b"u",
        "long-key-again": text("x" * 3_000_000)
        + b"q\x00N}("
        + b"".join(b"M" + struct.pack("<H", i) + b"}h\x00Ns" for i in range(18_000))
        + b"u",
        "tensors-again": tensor + b"q\x00" + storage + b"tQq\x01" + b"0h\x00(h\x01K\x00K\x00\x85K\x01\x85tR" * 9_000,
        "storages-again": storage + b"tq\x01" + b"0h\x01Q" * 30_000,
        "memoize": b"N" + b"\x94" * 3_900_000,
        "frames": b"\x95" + b"\xff" * 8 + (b"\x95" + b"\0" * 8) * 400_000,
        "popped": b"N" + b"N0" * 1_900_000,
        "globals-again": b"(" + text("collections") + b"q\x00" + text("OrderedDict") + b"q\x01" + b"h\x00h\x01\x93" * 30_000,
        "numbers-again": number_list(),
    }


def number_list() -> bytes:
    """Long numbers as keys and values."""
    number = b"\x8a\xff" + b"\x7f" * 255
    return b"}(" + b"".join(text(str(i)) + number for i in range(14_000)) + b"u"


def _archives() -> Iterator[tuple[str, bytes]]:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", b"\0" * 100_000_000)
        yield "deflated.pt", file.getvalue()
    for name in ("archive/data/0", "x" * 60_000 + "/data.pkl"):
        with io.BytesIO() as file:
            with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                archive.writestr("archive/data.pkl", b"\x80\x02}.")
                for _ in range(16 if len(name) > 100 else 15_000):
                    archive.writestr(name, b"")
            yield f"same-names-{len(name)}.pt", file.getvalue()
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    for name, entries in (("million-entries.pt", 1_000_000), ("500000-entries.pt", 500_000), ("20000-entries.pt", 20_000)):
        size, offset = len(entry) * entries, 4
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, min(entries, 65535), min(entries, 65535), size, offset, 0)
        yield name, b"PK\3\4" + entry * entries + end


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in chunks:
        parts += [struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(kind + data))]
    return b"".join(parts)


def _images() -> Iterator[tuple[str, bytes]]:
    def ihdr(width: int, height: int) -> tuple[bytes, bytes]:
        return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    end, small = (b"IEND", b""), (b"IDAT", zlib.compress(b"\0" * 4))
    bomb, million = zlib.compress(b"A" * 120_000_000, 1), zlib.compress(b"A" * 1_000_000)
    for keyword in (b"sd-ti-embedding", b"ti-trainer-negative", b"x"):
        yield f"ztxt-{keyword.decode()}.png", png([ihdr(1, 1), (b"zTXt", keyword + b"\0\0" + bomb), small, end])
        itxt = keyword + b"\0\1\0\0\0" + bomb
        yield f"itxt-{keyword.decode()}.png", png([ihdr(1, 1), (b"iTXt", itxt), small, end])
    yield (
        "texts.png",
        png([ihdr(1, 1), *[(b"zTXt", b"x%d\0\0" % i + million) for i in range(3000)], small, end]),
    )
    for kind, keyword in ((b"tEXt", b"x\0"), (b"zTXt", b"sd-ti-embeddin\0\0"), (b"iTXt", b"sd-ti-embedding")):
        yield f"tiny-{kind.decode()}.png", png([ihdr(1, 1)] + [(kind, keyword)] * 100_000 + [small, end])
        yield f"19000-{kind.decode()}.png", png([ihdr(1, 1)] + [(kind, keyword)] * 19_000 + [small, end])
    deep = struct.pack(">IIBBBBB", 2048, 2048, 16, 6, 0, 0, 1)
    pixels = zlib.compress(b"\x11" * (2048 * 8 * 2048 + 9000))
    yield "deep-interlaced.png", png([(b"IHDR", deep), (b"IDAT", pixels), end])
    yield "deep.png", png([(b"IHDR", deep[:-1] + b"\0"), (b"IDAT", pixels), end])
    yield "wide.png", png([ihdr(4 * MB, 1), (b"IDAT", zlib.compress(b"\0" + b"\x11" * 12 * MB)), end])
    yield "high.png", png([ihdr(1, 4 * MB), (b"IDAT", zlib.compress(b"\0\x11\x11\x11" * 4 * MB)), end])
    split = zlib.compress((b"\0" + b"\x11" * 6144) * 2048)
    yield "split.png", png([ihdr(2048, 2048), *[(b"IDAT", split[i : i + 1]) for i in range(len(split))][:19_000], end])
    large = zlib.compress((b"\0" + b"\x11" * 3 * 9000) * 9000)
    yield "two-headers.png", png([ihdr(1, 1), ihdr(9000, 9000), (b"IDAT", large), end])
    yield "profile.png", png([ihdr(1, 1), (b"iCCP", b"x\0\0" + bomb), small, end])
    yield "chunks.png", png([ihdr(1, 1)] + [(b"aaaa", b"")] * 500_000 + [small, end])
    yield "pixels.png", png([ihdr(2048, 2048), (b"IDAT", zlib.compress((b"\0" + b"\x11" * 6144) * 2048)), end])
    yield "pixels-of-a-bomb.png", png([ihdr(2000, 2000), (b"IDAT", bomb), end])
    yield "huge.png", png([ihdr(100_000, 100_000), (b"IDAT", bomb), end])
    cards = {
        "lists": b"[" + b"[]," * 2_600_000 + b"[]]",
        "dicts": b"[" + b'{"":0},' * 1_000_000 + b"0]",
        "nested": b"[" * 7_000_000,
        "zeros": b'{"string_to_param":{"*":{"TORCHTENSOR":[[' + b"0," * 4_000_000 + b"0]]}}}",
        "floats": b'{"string_to_param":{"*":{"TORCHTENSOR":[[' + b"0.5," * 500_000 + b"0]]}}}",
        "rows": b'{"string_to_param":{"*":{"TORCHTENSOR":[' + b"[0.5]," * 90_000 + b"[0]]}}}",
        "digits": b'{"step":' + b"9" * 8_000_000 + b"}",
        "wide-text": '{"name":"𝄞'.encode() + b"x" * 8_000_000 + b'"}',
        "long-float": b'{"step":0.' + b"1" * 8_000_000 + b"}",
        "long-floats": b'{"string_to_param":{"*":{"TORCHTENSOR":[[' + (b"0." + b"1" * 800 + b"e-300,") * 9_000 + b"0]]}}}",
        "same-keys": b"{" + b",".join([b'"a":0'] * 500_000) + b"}",
        "terms": b'{"string_to_param":{' + b",".join(b'"%d":{"TORCHTENSOR":[[0]]}' % i for i in range(30_000)) + b"}}",
        "keys": b"{" + b",".join(b'"%d":0' % i for i in range(500_000)) + b"}",
    }
    for name, card in cards.items():
        encoded = base64.b64encode(card)
        yield f"card-{name}.png", png([ihdr(1, 1), (b"tEXt", b"sd-ti-embedding\0" + encoded), small, end])
    yield (
        "pixels.webp",
        b"RIFF\x1e\x00\x00\x00WEBPVP8L\x11\x00\x00\x00/\xff\xc7\xff\x01\x07\xd0\x83\x1e\xf4\xa0\xff\x81\x88\xe8\x7f\x00\x00",
    )  # 2048 x 2048
    vp8x = b"VP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + b"\xff\x3f\0" * 2
    yield "canvas.webp", b"RIFF" + struct.pack("<I", 4 + len(vp8x)) + b"WEBP" + vp8x


def cost_of(path: Path) -> dict[str, object]:
    """What reading a file takes beyond what the process has already: seconds of CPU and megabytes."""
    from ti_trainer import formats
    from ti_trainer.errors import EmbeddingFormatError

    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        formats.read(path)
        formats.read_negative(path)
        said = ""
    except EmbeddingFormatError as error:
        said = str(error)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"name": path.name, "said": said, "cpu_s": time.process_time() - began, "mb": (after - before) / 1024}


def _say(cost: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(cost) + "\n")
    sys.stdout.flush()


def main(paths: list[str]) -> None:
    """Each in a child, so that none finds memory that another one has given back."""
    import ti_trainer.formats.pickled  # noqa: F401 - imports, torch's above all, are not part of the cost

    for path in map(Path, paths):
        child = os.fork()
        if not child:
            resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
            _say(cost_of(path))
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            _say({"name": path.name, "said": "killed", "cpu_s": 99.0, "mb": 9999.0})


if __name__ == "__main__":
    main(sys.argv[1:])
