"""Builds the library that pretends a CUDA device, for this torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).with_name("fake_cuda.cpp")
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


def built(folder: Path) -> Path:
    """The library, newly compiled in a few seconds."""
    home, library = Path(torch.__file__).parent, folder / "fake_cuda.so"
    paths = [f"-I{home / 'include'}", f"-L{home / 'lib'}", f"-Wl,-rpath,{home / 'lib'}"]
    options = ["-shared", "-fPIC", "-std=c++20", "-O0", *paths, "-ltorch_cpu", "-lc10"]
    subprocess.run(["g++", str(SOURCE), "-o", str(library), *options], check=True)  # noqa: S607 - whichever is first on the PATH
    return library


def environment(library: Path) -> dict[str, str]:
    """That of a process with the device, which finds the files of this folder."""
    folder, before = Path(__file__).parent, os.environ.get("PYTHONPATH", "")
    paths = os.pathsep.join(filter(None, (str(folder.parents[1]), str(folder), before)))
    return {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def check(files: Sequence[Path], folder: Path) -> None:
    """Run these test files in a process with the device; skip by name, or fail in CI, where it cannot be built."""
    if reason := obstacle():
        if os.environ.get("TI_TRAINER_CI") and "compiler" in reason:
            pytest.fail(f"{reason}: install g++")
        pytest.skip(reason)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *map(str, files)]
    found = subprocess.run(command, env=environment(built(folder)), capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-8000:] + found.stderr[-2000:]
