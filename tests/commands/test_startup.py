"""What commands import: none of them waits for torch before it knows that it needs it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ti_trainer import formats
from ti_trainer.__main__ import COMMANDS, main
from ti_trainer.benchmark import startup
from ti_trainer.commands import bench, convert
from ti_trainer.config.training import TrainConfig
from ti_trainer.embedding import Embedding
from ti_trainer.hosts.diffusers import shapes
from ti_trainer.hosts.diffusers.host import StandaloneHost

HEAVY = {"torch", "numpy", "PIL", "gradio", "diffusers", "transformers", "tqdm", "matplotlib", "safetensors"}
PROGRAM = """
import json, sys
from ti_trainer.__main__ import main
loaded = []
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit:
        pass
    loaded.append(sorted({name.split(".")[0] for name in sys.modules}))
sys.stderr.write("LOADED" + json.dumps(loaded))
"""


def loaded_by(*commands: list[str], missing: str = "") -> tuple[list[set[str]], str]:
    """The packages in memory after each command of one process, and what it printed on stderr before."""
    program = f"import sys; sys.modules[{missing!r}] = None\n{PROGRAM}" if missing else PROGRAM
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    printed, _, loaded = done.stderr.rpartition("LOADED")
    return [set(each) for each in json.loads(loaded)], printed


def test_help_version_and_usage_errors_load_no_heavy_package() -> None:
    commands = [["--version"], ["--help"], ["train"], ["nothing"], *([name, "--help"] for name in COMMANDS)]
    found, _ = loaded_by(*commands)
    assert {tuple(command): packages & HEAVY for command, packages in zip(commands, found, strict=True)} == {
        tuple(command): set() for command in commands
    }


def test_info_convert_and_the_queue_do_not_load_torch(tmp_path: Path) -> None:
    queue = {"entries": [{"id": "a1", "name": "a", "images": "/images", "train": {}, "state": "failed"}]}
    (tmp_path / "queue.json").write_text(json.dumps(queue), encoding="utf-8")
    changes = [
        ["queue", each, "--log-dir", str(tmp_path), *more] for each, *more in (("list",), ("retry", "1"), ("remove", "1"))
    ]
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    formats.write(Embedding("a", {"clip_l": torch.randn(2, 768)}, 5), source)
    convert_it = ["convert", str(source), str(target), "--name", "b"]
    found, _ = loaded_by(*changes, ["info", str(source)], convert_it, ["info", "--json", str(target)])
    assert found[len(changes) - 1] & HEAVY == set()
    assert json.loads((tmp_path / "queue.json").read_text(encoding="utf-8")) == {"entries": []}
    assert found[-1] & {"torch", "gradio", "diffusers", "transformers"} == set()
    assert "numpy" in found[-1], "this looks at what is loaded"
    assert torch.equal(formats.read(target).vectors["clip_l"], formats.read(source).vectors["clip_l"])
    assert (formats.read(target).name, formats.read(target).step) == ("b", 5)


def test_what_is_declared_without_imports_agrees_with_what_it_stands_for() -> None:
    assert tuple(formats.FORMATS) == convert.FORMATS
    assert tuple(shapes.SHAPES) == bench.SHAPES
    assert StandaloneHost() == StandaloneHost("embedded", "auto", Path("embeddings"), Path("textual_inversion"))


def test_a_python_without_the_packages_is_told_what_to_run() -> None:
    (_,), printed = loaded_by(["create", "my cat"], missing="torch")
    (line,) = printed.splitlines()
    assert "does not have the package torch. Run `python install.py run create ...`" in line


def test_startup_is_measured_in_processes(tmp_path: Path) -> None:
    program = "sum(range(3_000_000))"
    assert startup.cpu_seconds([sys.executable, "-c", program], tmp_path, os.environ) > 0.01
    with pytest.raises(startup.TITrainerError, match=r"(?s)exit code 3.*too bad"):
        startup.cpu_seconds([sys.executable, "-c", "print('too bad'); raise SystemExit(3)"], tmp_path, os.environ)


def test_the_table_of_startup_times_has_the_ratio() -> None:
    facts = {"steps": 9, "threads": "1", "cpu_seconds": {"--help": [0.1, 0.3, 0.2]}, "ratios": {"diffusers": 2.5}}
    lines = startup.table(facts).splitlines()
    assert lines[2].split() == ["--help", "0.20", "0.10", "0.30"]
    assert lines[-1] == "diffusers takes 2.50 times the CPU time of create and train 9 steps."


def test_every_measured_command_can_be_parsed(tmp_path: Path) -> None:
    from ti_trainer.__main__ import build_parser

    for what, arguments in startup.commands(tmp_path / "a.safetensors", tmp_path, 7).items():
        texts = [str(each) for each in arguments]
        if what in ("--help", "--version", startup.USAGE_ERROR):
            continue
        assert build_parser(texts[0]).parse_args(texts).command == texts[0]


@pytest.mark.slow
def test_train_creates_its_embedding_as_create_does(tmp_path: Path, images: Path, monkeypatch, capsys, caplog) -> None:
    monkeypatch.chdir(tmp_path)
    start = ["--init-text", "cat", "--num-vectors", "3"]
    assert main(["create", "one", *start]) == 0
    assert main(["train", "two", "--images", str(tmp_path / "nothing"), *start]) == 1
    assert not (tmp_path / "embeddings/two.safetensors").exists(), "a mistyped folder leaves nothing behind"
    capsys.readouterr()
    train = ["--images", str(images), "--max-steps", "2", "--learning-rate", "0.005"]
    assert main(["train", "two", *train, *start]) == 0
    assert "Created " in capsys.readouterr().out
    assert main(["train", "one", *train]) == 0
    one, two = (formats.read(tmp_path / f"embeddings/{name}.safetensors") for name in ("one", "two"))
    assert (two.num_vectors, two.step, two.info["init_text"]) == (3, 2, "cat")
    assert torch.equal(one.vectors["clip_l"], two.vectors["clip_l"])
    capsys.readouterr()
    assert main(["train", "two", *train, "--num-vectors", "3"]) == 1
    error = capsys.readouterr().err
    assert "--num-vectors" in error
    assert "two.safetensors" in error
    preset = ["--preset", "person", "--tag-dropout", "0.2", "--init-text", "cat"]
    assert main(["train", "two", *train, "--resume", *preset, "--max-steps", "3"]) == 0
    assert formats.read(tmp_path / "embeddings/two.safetensors").step == 3
    assert "--init-text: not used, since --resume continues" in caplog.text
    unused = "gradient_accumulation_steps, latent_sampling, shuffle_tags, preview_every, save_every"
    assert f"--preset person: not used for {unused}, which the run that is resumed sets." in caplog.text


def test_the_arguments_of_a_new_embedding_are_no_training_options() -> None:
    from ti_trainer.commands.train import START

    assert not set(START) & {each.name for each in dataclasses.fields(TrainConfig)}
