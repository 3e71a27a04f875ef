"""bench: what its table and JSON promise, and that what it compares with is what it says."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from ti_trainer.benchmark import peer_driver, peers, speed, webui_loop
from ti_trainer.benchmark.loops import (
    PARTS,
    bare_step,
    new_trainer,
    peak_memory,
    time_by_part,
    turn,
)
from ti_trainer.data.dataset import Dataset
from ti_trainer.data.images import Frame
from ti_trainer.data.loading import load_dataset
from ti_trainer.data.prompts import Prompter, load_template
from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.hosts.diffusers.loading import load
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.workbench.diagnosis import INIT_TEXT, NAME, first_vectors

Cli = Callable[..., object]


@pytest.fixture(scope="module")
def model() -> DiffusersModel:
    return load("embedded", "cpu")


@pytest.fixture
def embedded_model_is_read_once() -> None:
    """It is not: what is measured here is compiled and offloaded until the process ends."""


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """torch.compile traces as always and runs the graph as it is; each graph is noted with its size."""
    compile_as_always, noted = torch.compile, list[int]()

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        noted.append(len(graph.graph.nodes))
        return graph

    monkeypatch.setattr(torch, "compile", lambda network, **_: compile_as_always(network, backend=backend))
    yield noted
    torch.compiler.reset()


@pytest.fixture
def dataset(model: DiffusersModel, images: Path) -> Dataset:
    return load_dataset(images, model, Frame((64, 64)), Prompter(NAME, load_template("subject")))


def test_json_holds_what_is_promised(cli: Cli, images: Path) -> None:
    outcome = cli("bench", "--json", "--steps", 20, "--batch-sizes", 1, "--images", images, "--size", 64)
    assert outcome.code == 0
    facts = json.loads(outcome.out)
    assert (facts["model"], facts["steps"], facts["size"], facts["threads"]) == ("embedded", 20, 64, 1)
    (row,) = facts["rows"]
    assert row["batch_size"] == 1
    assert set(row["steps_per_second"]) == {"ours", "bare_loop"}
    assert row["ours_beside"] == {"bare_loop": row["steps_per_second"]["ours"]}
    ratio = row["ours_to"]["bare_loop"]
    assert 0 < ratio["lower_quartile"] <= ratio["median"] <= ratio["upper_quartile"]
    assert ratio["by_cpu_time"] > 0
    assert len(row["seconds_a_step"]["ours"]) == 10
    assert set(row["loss"]) == {"ours", "init_text"}
    assert (row["memory_is_of"], row["peak_memory_gib"]["ours"] > 0.05) == ("RAM", True)
    assert set(row["milliseconds_by_part"]) == {*PARTS, "step"}


def test_a_memory_mode_is_measured_and_named(cli: Cli, images: Path) -> None:
    flags = ("--json", "--steps", 10, "--batch-sizes", 1, "--images", images, "--size", 64)
    outcome = cli("bench", "--memory", "offload-all", *flags)
    assert outcome.code == 0
    (row,) = json.loads(outcome.out)["rows"]
    assert "all weights are kept in RAM" in row["memory"]
    assert all(row["milliseconds_by_part"][part] > 0 for part in PARTS)


def test_compiled_it_is_measured_beside_the_same_without(cli: Cli, images: Path, graphs: list[int]) -> None:
    outcome = cli("bench", "--json", "--compile", "--steps", 10, "--batch-sizes", 1, "--images", images, "--size", 64)
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    (row,) = facts["rows"]
    assert len(graphs) == 1  # the bare loop has the same
    assert row["compile_seconds"] > 0
    assert set(row["steps_per_second"]) == {"ours", "bare_loop", "compiled", "bare_compiled"}
    assert set(row["ours_to"]) == {"bare_loop", "compiled", "bare_compiled"}
    speeds = row["steps_per_second"]
    assert (row["ours_beside"]["compiled"], row["ours_beside"]["bare_compiled"]) == (speeds["ours"], speeds["compiled"])
    lines = speed.table(facts).splitlines()
    assert any(line.split()[:2] == ["bare", "compiled"] for line in lines)
    assert any("compiling took" in line for line in lines)


def test_what_cannot_be_compiled_is_not_measured_as_if_it_were(
    cli: Cli, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("no kernels today")

    compile_as_always = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network, **_: compile_as_always(network, backend=fail))
    outcome = cli("bench", "--compile", "--steps", 10, "--batch-sizes", 1, "--images", images, "--size", 64)
    assert outcome.code == 1
    assert "no kernels today" in outcome.errors[0]


def test_the_table_has_a_line_for_each_peer(cli: Cli, images: Path) -> None:
    outcome = cli("bench", "--steps", 10, "--batch-sizes", 1, "--images", images, "--against", "webui")
    assert outcome.code == 0, outcome.err
    lines = {line[:12].strip(): line.split() for line in outcome.out.splitlines() if line.startswith("  ")}
    assert {"ours", "bare loop", "webui"} <= set(lines)
    assert {"(quartiles)", "(RAM)", "loss"} <= set(lines[""])
    assert lines["webui"].count("x") == 2
    assert "embedded at 64 px" in outcome.out
    assert "ours by part, ms: text" in outcome.out
    assert float(lines["ours"][-1]) == pytest.approx(float(lines["webui"][-1]), abs=2e-4)  # the same training, dearer


def test_parts_are_found_and_sum_up_to_the_step(model: DiffusersModel, dataset: Dataset) -> None:
    events = new_trainer(model, dataset, 2, 30).run()
    next(events)
    seconds, _ = turn(lambda: next(events), 5)
    parts = time_by_part(model, lambda: next(events), 10)
    events.close()
    whole = parts.pop("step")
    assert sum(parts.values()) == pytest.approx(whole)
    assert all(each > 0 for each in parts.values())
    assert whole / 1000 < 20 * seconds  # milliseconds; the machine may be busy
    assert not {"encode_prompts", "predict"} & set(vars(model))


def test_looking_at_parts_changes_nothing(model: DiffusersModel, dataset: Dataset) -> None:
    learned = []
    for look in (True, False):
        trainer = new_trainer(model, dataset, 1, 4)
        events = trainer.run()
        if look:
            time_by_part(model, lambda: next(events), 4)  # noqa: B023 - used at once
        else:
            turn(lambda: next(events), 4)  # noqa: B023 - used at once
        learned.append(trainer.embedding.vectors["clip_l"])
        events.close()
    assert torch.equal(*learned)


def test_peak_memory_counts_what_is_gone_again() -> None:
    def step() -> None:
        torch.ones(64 * 2**20)  # 256 MB

    before, _ = peak_memory(lambda: None, 1)
    after, kind = peak_memory(step, 1)
    assert kind == "RAM"
    assert after - before > 150 * 2**20
    if Path("/proc/self/clear_refs").exists():
        again, _ = peak_memory(lambda: None, 1)
        assert after - again > 150 * 2**20


def test_the_webuis_loop_is_what_it_says_and_leaves_nothing_behind(model: DiffusersModel, dataset: Dataset) -> None:
    vectors = first_vectors(model)
    before = dict(model.unet.attn_processors)
    with webui_loop.as_the_webui(model):
        step = webui_loop.steps(model, dataset, 1, vectors)
        step()
        once = model.unet.conv_in.weight.grad.clone()
        step()
        assert all(each.grad is not None for each in model.unet.parameters())
        assert not torch.equal(model.unet.conv_in.weight.grad, once)  # they add up
        assert all(each.grad is None for each in model.text_encoders[0].module.parameters())
        assert {type(each) for each in model.unet.attn_processors.values()} == {AttnProcessor}
        assert model.unet.is_gradient_checkpointing
        assert model.unet.conv_in.weight.is_contiguous()
    assert model.unet.attn_processors == before
    assert not model.unet.is_gradient_checkpointing
    assert all(each.grad is None for each in model.unet.parameters())
    trainer = new_trainer(model, dataset, 1, 2)
    list(trainer.run())
    torch.testing.assert_close(vectors["clip_l"].detach(), trainer.embedding.vectors["clip_l"], rtol=0, atol=1e-4)


def test_the_bare_loop_leaves_no_gradients_on_weights(model: DiffusersModel, dataset: Dataset) -> None:
    with model.training():
        bare_step(model, dataset, 2)()
    assert all(each.grad is None for module in model.modules for each in module.parameters())


TOY = """
import sys, tqdm
with tqdm.tqdm(total=100, desc="steps") as bar:
    for number in range(int(sys.argv[2])):
        print("noise on stdout", number)
        bar.update(1)
"""


@pytest.fixture
def toy(tmp_path: Path) -> Callable[[str], peers.Peer]:
    def made(program: str) -> peers.Peer:
        (tmp_path / "toy.py").write_text(program)
        (tmp_path / "torchvision.py").write_text("")
        return peers.Peer("toy", "toy.py", lambda task, work: {"steps": task.all_steps}, "nothing", folder=tmp_path)

    return made


def task(images: Path, **other: object) -> peers.Task:
    return replace(peers.Task(Path(), images, 64, 1, "float32", "cpu", 2, 7, INIT_TEXT), **other)


def test_a_peer_runs_one_turn_at_a_time(toy: Callable[[str], peers.Peer], images: Path) -> None:
    with peers.running(toy(TOY), task(images)) as peer:
        for steps in (3, 3, 1):
            wall, cpu = peer.turn(steps)
            assert 0 < wall < 60
            assert cpu < 60
        assert peer.memory[0] > 2**20
        assert peer.finish() is None


def test_a_peer_that_fails_says_why(toy: Callable[[str], peers.Peer], images: Path) -> None:
    broken = toy("raise RuntimeError('no latents today')")
    with pytest.raises(TITrainerError, match=r"(?s)toy failed.*no latents today"), peers.running(broken, task(images)):
        pass
    poor = toy("import no_such_package.part")
    wanted = r"needs the package no_such_package.*--peer-python toy"
    with pytest.raises(ConfigError, match=wanted), peers.running(poor, task(images)):
        pass


def test_torchvision_has_a_stand_in(tmp_path: Path, images: Path) -> None:
    program = """
import numpy, sys, torch
from PIL import Image
from torchvision import transforms
image = Image.fromarray(numpy.full((4, 6, 3), 255, "uint8"))
made = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])(numpy.array(image))
assert made.shape == (3, 4, 6) and bool((made == 1).all())
assert transforms.RandomHorizontalFlip(1.0)(image).size == (6, 4)
import tqdm
bar = tqdm.tqdm(desc="Steps")
for _ in range(int(sys.argv[2])):
    bar.update(1)
"""
    (tmp_path / "flips.py").write_text(program)
    peer = peers.Peer("flips", "flips.py", lambda task, work: {"steps": task.all_steps}, "nothing", folder=tmp_path)
    with peers.running(peer, task(images)) as running:
        running.turn(7)
        running.finish()


def test_the_driver_needs_nothing_of_ours() -> None:
    assert "ti_trainer" not in Path(peer_driver.__file__).read_text().replace("without ti_trainer", "")


def test_what_cannot_be_measured_is_refused(cli: Cli, model: DiffusersModel, tmp_path: Path) -> None:
    for flags, *words in (
        (("--size", 100), "100", "multiple of 64"),
        (("--shape", "sd15", "--model", "a.safetensors"), "sd15", "a.safetensors"),
        (("--compile", "--memory", "offload-all"), "--memory offload-all", "leave one of them out"),
        (("--against", "kohya"), "kohya=DIR"),
        (("--against", "webui=here"), "webui=here"),
        (("--against", "kohya=nowhere"), "nowhere", "checkout"),
        (("--peer-python", "kohya"), "PEER=PYTHON"),
        (("--against", "webui", "--peer-python", "webui=no-such-python"), "no-such-python"),
    ):
        outcome = cli("bench", "--steps", 10, *flags)
        assert outcome.code == 1
        assert all(word in outcome.errors[0] for word in words), outcome.err
    assert cli("bench", "--shape", "flux").code == 2
    kohya = replace(peers.PEERS["kohya"], folder=tmp_path, python=Path(sys.executable))
    with pytest.raises(ConfigError, match=r"supports SD 1\.x only"):
        speed.check_peers([kohya], model)
    two = replace(model, text_encoders=[model.text_encoders[0], model.text_encoders[0]])
    with pytest.raises(ConfigError, match="one text encoder"):
        speed.check_peers([peers.PEERS["webui"]], two)
