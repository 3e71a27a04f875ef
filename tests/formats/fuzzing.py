"""Damages files at random, as they are and inside their containers, and reads them: only EmbeddingFormatError may come.

    python tests/formats/fuzzing.py [SEED] [SECONDS]

It stops at the first that fails, says with which seed, and keeps the file.
"""

from __future__ import annotations

import io
import json
import random
import resource
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

INTEROP = Path(__file__).parents[1] / "fixtures" / "interop"
WORDS = (
    b"\0",
    b"\xff",
    b"\x80",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"[",
    b"{",
    b'"',
    b"(",
    b".",
    b"R",
    b"]" * 300,
    b"9" * 400,
    b"h\0h\0\x86q\0",
)
CPU_S, MB = 2.0, 200.0


def damaged(content: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, left out, repeated, or put in, most of them near the beginning, where the structure is."""
    made = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        where = chance.randrange(max(min(len(made), chance.choice((64, 1024, 10**9))), 1))
        length = chance.choice((1, 2, 4, 8, 100))
        match chance.randrange(6):
            case 0 if made:
                made[where] ^= 1 << chance.randrange(8)
            case 1:
                made[where : where + length] = chance.randbytes(length)
            case 2:
                del made[where : where + length]
            case 3:
                made[where:where] = made[where : where + length] * chance.choice((1, 2, 50))
            case 4:
                made[where:where] = chance.choice(WORDS)
            case _:
                made[where : where + length] = chance.choice(WORDS)
    return bytes(made)


def in_container(content: bytes, chance: random.Random) -> bytes:
    """Damaged inside, with lengths and checksums that are right again; as it is, if it is no container."""
    if content[:2] == b"PK":
        return _zip(content, chance)
    if content[:4] == b"\x89PNG":
        return _png(content, chance)
    if content[8:9] == b"{":
        size = int.from_bytes(content[:8], "little")
        header = damaged(content[8 : 8 + size], chance)
        return struct.pack("<Q", len(header)) + header + content[8 + size :]
    return damaged(content, chance)


def _zip(content: bytes, chance: random.Random) -> bytes:
    with io.BytesIO() as made:
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
            for name in old.namelist():
                kept = old.read(name)
                new.writestr(name, damaged(kept, chance) if name.endswith(".pkl") else kept)
        return made.getvalue()


def _png(content: bytes, chance: random.Random) -> bytes:
    parts, at = [content[:8]], 8
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + size]
        if kind != b"IDAT" and chance.random() < 0.5:
            data = damaged(data, chance)
        parts += [struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(kind + data))]
        at += size + 12
    return b"".join(parts)


def samples(folder: Path) -> list[tuple[str, bytes]]:
    """What other tools wrote, and what we write in every format."""
    import torch

    from ti_trainer import formats
    from ti_trainer.embedding import Embedding

    torch.manual_seed(0)
    for name, form in formats.FORMATS.items():
        for widths in ({"clip_l": 8}, {"clip_l": 768, "clip_g": 1280}):
            if name != "webui" or len(widths) == 1:
                vectors = {encoder: torch.randn(1, width) for encoder, width in widths.items()}
                formats.write(Embedding("a", vectors, 3), folder / f"{name}-{len(widths)}{form.extensions[0]}", name)
    torch.save({"a": torch.ones(1, 8)}, folder / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"a": torch.ones(1, 8)}, folder / "p4.pt", pickle_protocol=4)
    paths = [path for each in (folder, INTEROP) for path in sorted(each.rglob("*")) if path.is_file()]
    return [(path.name, path.read_bytes()) for path in paths if path.suffix not in (".json", ".md")]


def tried(path: Path) -> None:
    """Read it in every way that there is; EmbeddingFormatError is fine, all else is not."""
    from ti_trainer import formats
    from ti_trainer.errors import EmbeddingFormatError
    from ti_trainer.formats import webui_optimizer

    original = formats.read(INTEROP / "webui-two.pt")
    ways: tuple[Callable[[], object], ...] = (
        lambda: formats.read(path),
        lambda: formats.read_negative(path),
        lambda: webui_optimizer.read_optimizer(path.with_suffix(""), original),
    )
    for way in ways:
        with suppress(EmbeddingFormatError):
            way()


def main(seed: int, seconds: float) -> str:
    """What went wrong; "" for nothing."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    known, chance, until = samples(folder), random.Random(seed), time.monotonic() + seconds
    for name, content in known:
        (folder / name).write_bytes(content)
        tried(folder / name)
    before, count = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    while time.monotonic() < until:
        name, content = chance.choice(known)
        path = folder / f"damaged-{name}"
        path.write_bytes(chance.choice((damaged, in_container))(content, chance))
        began, count = time.process_time(), count + 1
        try:
            tried(path)
        except Exception as error:  # any other error is what is looked for
            return f"{type(error).__name__}: {error}: seed {seed}, file {count}, kept as {path}"
        taken = time.process_time() - began
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        if taken > CPU_S or grown > MB:
            return f"{taken:.1f} s of CPU, {grown:.0f} MB: seed {seed}, file {count}, kept as {path}"
        path.unlink()
    sys.stdout.write(json.dumps({"seed": seed, "files": count, "grown_mb": grown}) + "\n")
    return ""


if __name__ == "__main__":
    given = [*sys.argv[1:], "", ""]
    sys.exit(main(int(given[0] or time.time_ns() % 10**9), float(given[1] or 60)) or 0)
