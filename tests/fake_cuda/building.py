"""Builds the library that pretends a CUDA device, for this torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

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
    """That of a process with the device."""
    root = Path(__file__).parents[2]
    return {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
