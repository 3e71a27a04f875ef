"""Builds the library that pretends a CUDA device, for this torch."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).with_name("fake_cuda.cpp")
CACHE = Path(__file__).parents[2] / ".pytest_cache" / "fake_cuda"
TESTED = (2, 13)  # its classes override torch's, which change with every version


def obstacle() -> str:
    """Why it cannot be built here; empty if it can."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if not sys.platform.startswith("linux"):
        return "the library is preloaded as on Linux only"
    if torch.version.cuda is not None or torch.version.hip is not None or torch.cuda.is_available():
        return "this torch has real CUDA"
    if version != TESTED:
        return f"the library is for torch {'.'.join(map(str, TESTED))}, and this is {torch.__version__}"
    return "" if shutil.which("g++") else "there is no C++ compiler (g++)"


def library() -> Path:
    """The library; it is compiled once, in a few seconds, for all environments with this torch."""
    home = Path(torch.__file__).parent
    found = CACHE / f"{torch.__version__}-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.so"
    if not found.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            new = Path(folder, found.name)
            options = ["-shared", "-fPIC", "-std=c++20", "-O0", f"-I{home / 'include'}", f"-L{home / 'lib'}"]
            command = ["g++", str(SOURCE), "-o", str(new), *options, "-ltorch_cpu", "-lc10"]
            subprocess.run(command, check=True)
            new.replace(found)
    return found


def environment() -> dict[str, str]:
    """That of a process with the device, which finds torch's libraries and the files of this folder."""
    folder = Path(__file__).parent
    paths = {"PYTHONPATH": (folder.parents[1], folder), "LD_LIBRARY_PATH": (Path(torch.__file__).parent / "lib",)}
    joined = {
        name: os.pathsep.join([*map(str, mine), *filter(None, [os.environ.get(name)])]) for name, mine in paths.items()
    }
    return {**os.environ, **joined, "LD_PRELOAD": str(library()), "OMP_NUM_THREADS": "1"}


def check(*files: Path) -> None:
    """Run these test files in a process with the device; skip by name, or fail in CI, where it cannot be built."""
    if reason := obstacle():
        if os.environ.get("TI_TRAINER_CI") and "compiler" in reason:
            pytest.fail(f"{reason}: install g++")
        pytest.skip(reason)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *map(str, files)]
    found = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-8000:] + found.stderr[-2000:]
