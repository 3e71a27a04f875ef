"""Imports keep the arrows: scripts -> hosts.webui -> ui -> core, and __main__ -> commands -> hosts.diffusers -> core."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "ti_trainer").rglob("*.py"))
OUTER = ("hosts", "commands", "ui", "__main__", "embedded")  # everything else is the core
LATER = ("matplotlib", "tensorboard", "cv2", "onnxruntime", "imagehash")  # heavy, or not always there
WHERE_ONLY = {  # a package -> the places that may import it
    "modules": ("hosts/webui",),
    "ldm": ("hosts/webui",),
    "sgm": ("hosts/webui",),
    "gradio": ("ui",),
    "diffusers": ("hosts/diffusers", "embedded"),
    "transformers": ("hosts/diffusers", "embedded", "preprocess/captioners", "training/discriminator.py"),
}


def place(path: Path) -> str:
    """`hosts/webui/model.py` for a file, its folder and file names joined by slashes."""
    return path.relative_to(ROOT / "ti_trainer").as_posix()


def layer(path: Path) -> str:
    return place(path).split("/")[0].removesuffix(".py")


def within(path: Path, places: tuple[str, ...]) -> bool:
    return any(place(path) == each or place(path).startswith(f"{each}/") for each in places)


def imports(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, wherever it stands, in full."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{each.name}" for each in node.names)


def is_core(path: Path) -> bool:
    return layer(path) not in OUTER


def imports_part(path: Path, parts: tuple[str, ...]) -> list[str]:
    return [each for each in imports(path) if each.startswith("ti_trainer.") and each.split(".")[1] in parts]


def test_this_looks_at_the_code() -> None:
    assert len(FILES) > 30
    assert "diffusers.AutoencoderKL" in set(imports(ROOT / "ti_trainer/hosts/diffusers/model.py"))
    assert {"training", "data", "formats", "config"} <= {layer(path) for path in FILES if is_core(path)}


@pytest.mark.parametrize("package", WHERE_ONLY)
def test_a_package_is_imported_only_where_it_belongs(package: str) -> None:
    astray = [place(path) for path in FILES if package in {each.split(".")[0] for each in imports(path)}]
    assert [each for each in astray if not within(ROOT / "ti_trainer" / each, WHERE_ONLY[package])] == []


@pytest.mark.parametrize("path", [path for path in FILES if is_core(path)], ids=place)
def test_the_core_knows_nothing_of_what_is_around_it(path: Path) -> None:
    assert imports_part(path, ("hosts", "commands", "ui", "__main__")) == []


@pytest.mark.parametrize("path", [path for path in FILES if layer(path) == "hosts"], ids=place)
def test_hosts_do_not_know_the_command_line(path: Path) -> None:
    allowed = ("commands", "__main__") if within(path, ("hosts/webui",)) else ("commands", "__main__", "ui")
    assert imports_part(path, allowed) == []


@pytest.mark.parametrize("path", [path for path in FILES if layer(path) == "ui"], ids=place)
def test_the_page_knows_the_core_only(path: Path) -> None:
    assert imports_part(path, ("commands", "__main__", "hosts")) == []


def test_only_formats_and_the_making_of_the_model_unpickle() -> None:
    for path in FILES:
        if within(path, ("formats", "embedded")):
            continue
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        assert "torch.load" not in {ast.unparse(node) for node in tree if isinstance(node, ast.Attribute)}, place(path)
        assert not {"pickle", "pickletools", "torch.load"} & set(imports(path)), place(path)


def test_importing_the_core_does_nothing(tmp_path: Path) -> None:
    """In a fresh process: no host's package comes along, no GPU is taken, nothing is said, written or patched."""
    names = [f"ti_trainer.{place(path)[:-3].replace('/', '.')}".removesuffix(".__init__") for path in FILES if is_core(path)]
    program = f"""
import importlib, json, logging, signal, sys, threading
import ti_trainer
bare = sorted(name for name in sys.modules if name.split(".")[0] in ("torch", "numpy", "PIL"))
import torch
before = torch.load, torch.random.get_rng_state().sum().item(), signal.getsignal(signal.SIGINT), logging.root.handlers[:]
for name in {names!r}:
    importlib.import_module(name)
after = torch.load, torch.random.get_rng_state().sum().item(), signal.getsignal(signal.SIGINT), logging.root.handlers[:]
loaded = sorted({{name.split(".")[0] for name in sys.modules}} & {{*{list(WHERE_ONLY)!r}, *{LATER}}})
print(json.dumps([bare, loaded, torch.cuda.is_initialized(), before == after, threading.active_count()]))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], [], False, True, 1]
    assert list(tmp_path.iterdir()) == []
