"""A run's folder: found again, never mixed with another, and readable after a crash."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ti_trainer.errors import ConfigError, TrainingError
from ti_trainer.runs.run_folder import CSV_COLUMNS, Run
from ti_trainer.training.trainer import TrainState

HEADER = ",".join(CSV_COLUMNS) + "\r\n"


def state(step: int = 3) -> TrainState:
    parameter = torch.randn(2, 4, generator=torch.Generator().manual_seed(step)).requires_grad_()
    optimizer = torch.optim.AdamW([parameter], 0.005, weight_decay=0.0)
    parameter.square().sum().backward()
    optimizer.step()
    return TrainState(
        step, 2 * step, {"clip_l": parameter.detach()}, (optimizer.state_dict(),), {"scale": 65536.0, "_growth_tracker": 3}
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path, "x-word", {"name": "x-word"})


def test_a_run_has_a_folder_of_its_day(run: Run, tmp_path: Path) -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d/x-word", run.path.relative_to(tmp_path).as_posix())
    assert run.settings() == {"name": "x-word"}


def test_the_second_run_of_a_day_has_a_number(run: Run, tmp_path: Path) -> None:
    second, third = (Run.create(tmp_path, "x-word", {"name": "x-word", "run": number}) for number in (2, 3))
    assert [second.path.name, third.path.name] == ["x-word-2", "x-word-3"]
    assert run.settings() == {"name": "x-word"}
    assert third.settings()["run"] == 3


def test_settings_are_for_people_too(run: Run) -> None:
    run.save_settings({"name": "猫"})
    assert "猫" in (run.path / "settings.json").read_text(encoding="utf-8")


def test_a_state_survives_its_file(run: Run) -> None:
    written = state()
    run.save_state(written, "fingerprint")
    read, fingerprint = run.load_state()
    assert fingerprint == "fingerprint"
    assert (read.step, read.micro_step, read.scaler) == (3, 6, written.scaler)
    assert torch.equal(read.vectors["clip_l"], written.vectors["clip_l"])
    optimizer = torch.optim.AdamW([torch.zeros(2, 4, requires_grad=True)])
    optimizer.load_state_dict(read.optimizers[0])
    for key, value in written.optimizers[0]["state"][0].items():
        assert torch.equal(read.optimizers[0]["state"][0][key], value)


def test_the_latest_run_is_the_one_whose_state_was_saved_last(run: Run, tmp_path: Path) -> None:
    later, other = Run.create(tmp_path, "x-word", {"name": "x-word"}), Run.create(tmp_path, "x-word-4", {"name": "x-word-4"})
    for number, each in enumerate((later, run, other)):
        each.save_state(state(), "")
        os.utime(each.path / "state.safetensors", (1000 + number, 1000 + number))
    Run.create(tmp_path, "x-word", {"name": "x-word"})  # crashed before any state
    assert Run.latest(tmp_path, "x-word") == run
    assert Run.latest(tmp_path, "x-word-4") == other


def test_without_a_run_there_is_nothing_to_resume(tmp_path: Path, run: Run) -> None:
    for name in ("another", "x-word"):
        with pytest.raises(TrainingError, match=f"no run of '{name}' under .* to resume"):
            Run.latest(tmp_path, name)


def test_all_runs_are_those_with_settings_the_one_at_work_last_first(run: Run, tmp_path: Path) -> None:
    assert Run.all(tmp_path / "missing") == []
    others = [Run.create(tmp_path, name, {"name": name}) for name in ("x-word", "another", "third")]
    (tmp_path / "2020-01-01" / "no run").mkdir(parents=True)
    for each in (others[0], run):
        each.save_state(state(), "")
    begun, saved = "settings.json", "state.safetensors"
    for number, (each, file) in enumerate(
        [(run, begun), (others[1], begun), (others[0], saved), (run, saved), (others[2], begun)]
    ):
        os.utime(each.path / file, (1000 + number, 1000 + number))
    assert Run.all(tmp_path) == [others[2], run, others[0], others[1]]
    assert [each.changed_at for each in Run.all(tmp_path)] == [1004, 1003, 1002, 1001]


def test_a_run_is_named_by_its_day_and_name(run: Run, tmp_path: Path) -> None:
    second = Run.create(tmp_path, "x-word", {"name": "x-word"})
    assert re.fullmatch(r"\d{4}-\d\d-\d\d/x-word", run.id)
    assert second.id == run.id + "-2"
    assert tmp_path / second.id == second.path


@pytest.mark.parametrize("content", [b"", b"\x08" + bytes(200), None])
def test_how_far_a_run_is_shows_in_its_state(run: Run, content: bytes | None) -> None:
    assert run.step == 0
    run.save_state(state(7), "")
    assert run.step == 7
    (run.path / "state.safetensors").unlink()
    if content is not None:
        (run.path / "state.safetensors").write_bytes(content)
    assert run.step == 0


def test_previews_and_copies_are_in_the_order_of_their_steps(run: Run) -> None:
    assert run.previews() == run.copies() == []
    for folder, name in (
        *(("images", f"x-word-{step}.png") for step in (1000, 0, 20, 3)),
        *(("embeddings", f"x-word-{step}.safetensors") for step in (30, 4)),
        *(("images", name) for name in (".x-word-5-a1b2.png", "x-word-last.png", "x-word-7.jpg", "image.png")),
        *(("embeddings", name) for name in (".x-word-5.safetensors", "x-word-5.pt")),
    ):
        (run.path / folder).mkdir(exist_ok=True)
        (run.path / folder / name).touch()
    assert [(step, path.name) for step, path in run.previews()] == [(s, f"x-word-{s}.png") for s in (0, 3, 20, 1000)]
    assert [(step, path.name) for step, path in run.copies()] == [(s, f"x-word-{s}.safetensors") for s in (4, 30)]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"3", b"\xff\xfe", None])
def test_a_run_of_damaged_settings_is_not_passed_over_for_an_older_one(
    run: Run, tmp_path: Path, content: bytes | None
) -> None:
    damaged, other = Run.create(tmp_path, "x-word", {"name": "x-word"}), Run.create(tmp_path, "another", {"name": "another"})
    for number, each in enumerate((run, other, damaged)):
        each.save_state(state(), "")
        os.utime(each.path / "state.safetensors", (1000 + number, 1000 + number))
    (damaged.path / "settings.json").unlink()
    if content is not None:
        (damaged.path / "settings.json").write_bytes(content)
    assert damaged.settings() == {}
    assert Run.latest(tmp_path, "another") == other
    with pytest.raises(
        TrainingError, match=rf"seems to be {re.escape(str(damaged.path))}.*settings.json .*move this folder"
    ):
        Run.latest(tmp_path, "x-word")
    os.utime(damaged.path / "state.safetensors", (999, 999))
    assert Run.latest(tmp_path, "x-word") == run, "it is newer"


def damaged_states() -> dict[str, object]:
    vectors = {"vectors.clip_l": torch.zeros(2, 4)}
    return {
        "empty": b"",
        "noise": b"\x08" + bytes(200),
        "no header": (vectors, None),
        "no json": (vectors, {"state": "{"}),
        "nothing in it": (vectors, {"state": "{}"}),
        "no dict": (vectors, {"state": "[]"}),
        "no optimizer": (vectors, {"state": json.dumps(
            {"step": 1, "micro_step": 1, "dataset": "", "scaler": None, "trials": [], "optimizers": []})}),
        "half an optimizer": (vectors, {"state": json.dumps(
            {"step": 1, "micro_step": 1, "dataset": "", "scaler": None, "trials": [], "optimizers": [
                {"dict": [["state", {"dict": []}]]}]})}),
        "no tensor of this name": (vectors, {"state": json.dumps(
            {"step": 1, "micro_step": 1, "dataset": "", "scaler": None, "trials": [], "optimizers": [{"tensor": "a"}]})}),
    }  # fmt: skip


@pytest.mark.parametrize("damage", damaged_states())
def test_a_damaged_state_is_told_with_what_to_do(run: Run, damage: str) -> None:
    content, path = damaged_states()[damage], run.path / "state.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_file(content[0], path, content[1])
    with pytest.raises(TrainingError, match=r"state\.safetensors cannot be read .*: start a new run"):
        run.load_state()


def test_half_a_state_is_never_seen(run: Run) -> None:
    """It is written beside and put in place: what is there is whole."""
    run.save_state(state(3), "")
    before = (run.path / "state.safetensors").stat().st_ino
    run.save_state(state(4), "")
    assert (run.path / "state.safetensors").stat().st_ino != before
    assert run.load_state()[0].step == 4
    assert sorted(path.name for path in run.path.iterdir()) == ["settings.json", "state.safetensors"]


def test_no_table_has_no_losses(run: Run) -> None:
    assert run.losses() == []


def test_losses_after_a_step_are_forgotten_and_the_others_kept_as_they_are(run: Run) -> None:
    lines = [HEADER, "10,1,0,0.1234567,0.005\r\n", "20,2,0,0.2000000,0.005\r\n", "30,3,0,0.3000000,1e-05\r\n"]
    run.loss_file.write_bytes("".join(lines).encode())
    run.forget_after(20)
    assert [row["step"] for row in run.losses()] == [10, 20]
    assert run.losses()[0] == {"step": 10, "epoch": 1, "epoch_step": 0, "loss": 0.1234567, "learn_rate": 0.005}
    assert run.loss_file.read_text().splitlines()[:2] == [HEADER.strip(), "10,1,0,0.1234567,0.005"]


def test_so_are_validation_losses_and_what_is_not_there_is_not_made(run: Run) -> None:
    run.forget_after(20)
    assert sorted(path.name for path in run.path.iterdir()) == ["settings.json"]
    assert run.validation_losses() == []
    run.validation_file.write_bytes(b"step,loss\r\n0,0.5000000\r\n20,0.4000000\r\n30,0.3000000\r\n40,0.2")
    assert run.validation_losses() == [(0, 0.5), (20, 0.4), (30, 0.3)]  # a crash cut the last line off
    run.forget_after(20)
    assert run.validation_file.read_bytes() == b"step,loss\r\n0,0.5000000\r\n20,0.4000000\r\n"
    assert not run.loss_file.exists()


@pytest.mark.parametrize(
    "cut", ["2", "20,2", "20,2,0,0.2", "20,2,0,0.2000000,", "20,2,0,0.2000000,0.00", "20,2,0,0.2000000,0.005"]
)
def test_a_line_that_a_crash_cut_off_does_not_count(run: Run, cut: str) -> None:
    run.loss_file.write_bytes((HEADER + "10,1,0,0.1,0.005\r\n" + cut).encode())
    assert [row["step"] for row in run.losses()] == [10]
    run.forget_after(20)
    assert run.loss_file.read_bytes() == (HEADER + "10,1,0,0.1,0.005\r\n").encode()


@pytest.mark.parametrize(
    ("train", "found"),
    [
        ({"tries": 3, "data_set": "a.toml", "max_steps": 9}, "the options data_set, tries"),
        ({"max_steps": 9, "memory": "card"}, "memory"),
    ],
)
def test_options_of_another_version_are_refused_in_one_message(tmp_path: Path, train: dict, found: str) -> None:
    run = Run.create(tmp_path, "x-word", {"name": "x-word", "train": train})
    with pytest.raises(ConfigError, match=f"made by another version of TI Trainer.*{found}.*Start a new run"):
        run.options()


def test_options_that_are_missing_have_their_defaults(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "x-word", {"name": "x-word", "train": {"max_steps": 9}})
    assert run.options() == {"max_steps": 9, "stop_when_done": False, "prompt_preservation": 0.0}
