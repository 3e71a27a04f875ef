"""Imports go one way, from the outer layers to the inner ones, and never in a circle."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "ti_trainer").rglob("*.py"))
LAYERS = (  # from the inside out: a module imports from its own folder and from the layers before it
    ("errors", "wording", "resources", "tiny_model"),
    ("files", "prompts", "background"),
    ("embedding", "lora"),
    ("functional",),
    ("config",),
    ("model",),
    ("formats",),
    ("offload",),
    ("data",),
    ("training",),
    ("captioning",),
    ("host",),
    ("preprocess",),
    ("runs",),
    ("workbench",),
    ("ui",),
    ("hosts",),
    ("making",),  # tiny_model/making: how the model was made
    ("benchmark",),
    ("commands",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
CORE = {name for names in LAYERS[: RANK["ui"]] for name in names}  # independent of hosts, pages and the command line
LATER = ("tensorboard", "cv2", "onnxruntime", "imagehash")  # heavy, or not always installed
WHERE_ONLY = {  # a package -> the places that may import it
    "modules": ("hosts/webui", "hosts/forge"),
    "backend": ("hosts/forge",),
    "ldm": ("hosts/webui",),
    "ldm_patched": ("hosts/webui",),
    "sgm": ("hosts/webui",),
    "gradio": ("ui",),
    "diffusers": ("hosts/diffusers", "tiny_model/making"),
    "transformers": (
        "hosts/diffusers",
        "tiny_model/making",
        "captioning",
        "training/discriminator.py",
        "workbench/similarity.py",
    ),
}


def place(path: Path) -> str:
    """`hosts/webui/model.py` for a file, its folder and file names joined by slashes."""
    return path.relative_to(ROOT / "ti_trainer").as_posix()


def layer(path: Path) -> str:
    first, *rest = place(path).removesuffix(".py").split("/")
    return "making" if rest[:1] == ["making"] else first


def within(path: Path, places: tuple[str, ...]) -> bool:
    return any(place(path) == each or place(path).startswith(f"{each}/") for each in places)


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def imports(path: Path) -> list[str]:
    """Every module that a file names in an import, wherever it stands, in full."""
    named = []
    for node in nodes(path):
        if isinstance(node, ast.Import):
            named += [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            named += [f"{node.module}.{each.name}" for each in node.names]
    return named


def module(path: Path) -> str:
    return f"ti_trainer.{place(path)[:-3].replace('/', '.')}".removesuffix(".__init__")


MODULES = {module(path): path for path in FILES}


def ours(path: Path) -> set[str]:
    """The modules of ours that a file imports."""
    named = {each if each in MODULES else each.rpartition(".")[0] for each in imports(path)}
    return named & MODULES.keys() - {module(path), "ti_trainer.__init__"}


def is_core(path: Path) -> bool:
    return layer(path) in CORE


def test_this_looks_at_the_code() -> None:
    assert len(FILES) > 30
    assert "transformers" in set(imports(ROOT / "ti_trainer/hosts/diffusers/library.py"))
    assert {layer(path) for path in FILES} == {*RANK, "__init__"}
    assert "ti_trainer.training.step" in ours(ROOT / "ti_trainer/training/trainer.py")


@pytest.mark.parametrize("package", WHERE_ONLY)
def test_a_package_is_imported_only_where_it_belongs(package: str) -> None:
    astray = [place(path) for path in FILES if package in {each.split(".")[0] for each in imports(path)}]
    assert [each for each in astray if not within(ROOT / "ti_trainer" / each, WHERE_ONLY[package])] == []


@pytest.mark.parametrize("path", FILES, ids=place)
def test_imports_go_to_inner_layers_only(path: Path) -> None:
    mine = RANK.get(layer(path), -1)
    outward = [
        name
        for name in ours(path)
        if name != "ti_trainer" and layer(MODULES[name]) != layer(path) and RANK[layer(MODULES[name])] >= mine
    ]
    assert outward == []


def test_no_imports_in_a_circle() -> None:
    try:
        list(TopologicalSorter({name: ours(path) for name, path in MODULES.items()}).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_only_formats_and_the_making_of_the_model_unpickle() -> None:
    for path in FILES:
        if within(path, ("formats", "tiny_model/making")):
            continue
        attributes = {ast.unparse(each) for each in nodes(path) if isinstance(each, ast.Attribute) and each.attr == "load"}
        assert "torch.load" not in attributes, place(path)
        assert not {"pickle", "pickletools", "torch.load"} & set(imports(path)), place(path)


def test_importing_the_core_does_nothing(tmp_path: Path) -> None:
    """In a fresh process: no host's package comes along, no GPU is taken, nothing is said, written or patched."""
    names = [module(path) for path in FILES if is_core(path)]
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
