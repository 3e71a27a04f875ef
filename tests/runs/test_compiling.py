"""What a run asks the model for when it may be compiled, and what people see of it meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import TinyModel
from puppet import CONFIG, Puppet, ended, finished
from tqdm import tqdm

from ti_trainer.commands.progress import Progress
from ti_trainer.runs.job import Job, Snapshot
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session
from ti_trainer.training.events import Compiling, Event, Fitting, StepDone
from ti_trainer.ui.panels.status_strip import message_of
from ti_trainer.ui.panels.train_progress import _details


class Compiled(TinyModel):
    """Begins anew for each size, as a compiler does."""

    def __init__(self, looks: list[Snapshot]) -> None:
        super().__init__()
        self.asked: list[tuple[str, int, int]] = []
        self.sizes: set[Any] = set()
        self.looks, self.job = looks, Job()

    def fit_memory(self, places: int, decoded: int = 0, mode: str = "auto") -> str:
        return "All fits."

    def compile(self, when: str, steps: int, sizes: int, begins: Callable[[], None]) -> str:
        self.asked.append((when, steps, sizes))
        self.begins = begins
        return "It is compiled." if when == "on" else ""

    def predict(self, noisy_latents: Any, *others: Any) -> Any:
        prediction = super().predict(noisy_latents, *others)
        if prediction.requires_grad and noisy_latents.shape not in self.sizes:
            self.sizes.add(noisy_latents.shape)
            self.begins()
        self.looks.append(self.job.snapshot())
        return prediction


def test_a_run_asks_for_the_steps_that_are_left_and_the_sizes_there_are(session: Session, host: Puppet) -> None:
    host.model = model = Compiled([])
    finished(session)
    resumed = Run.latest(host.log_dir, "x-word")
    finished(replace(session, resume=resumed, config=replace(CONFIG, max_steps=14, compile="off")))
    assert model.asked == [("auto", 10, 3), ("off", 4, 3)]


def test_who_watches_sees_it_until_the_step_is_done(session: Session, host: Puppet) -> None:
    looks: list[Snapshot] = []
    host.model = model = Compiled(looks)
    model.job.start(replace(session, config=replace(CONFIG, compile="on", batch_size=1, gradient_accumulation_steps=1)))
    now = ended(model.job)
    compiling = [each for each in looks if each.compiling]
    assert len(compiling) == 3  # no more than the first step of each size
    assert compiling[0].step == 0
    assert all("this step takes a minute or more" in message_of(each) for each in compiling)
    assert not now.compiling
    assert now.computing == "All fits. It is compiled."
    assert ("Computing", now.computing) in _details(now)
    assert "minute" not in message_of(now)


def test_the_bar_on_a_terminal_says_it_too(session: Session, host: Puppet, capsys: pytest.CaptureFixture[str]) -> None:
    host.model, said = Compiled([]), []
    with Progress() as progress:

        def watching(trainer: Any, run: Run) -> list[Callable[[Event], None]]:
            (watcher,) = progress.begin(trainer, run)

            def both(event: Event) -> None:
                watcher(event)
                said.append((type(event), progress.bar.desc))

            return [both]

        session.train(watching)
    assert {desc for kind, desc in said if kind is Compiling} == {"Compiling, a minute or more: "}
    assert {desc for kind, desc in said if kind is StepDone} == {"Training: "}


def test_fitting_to_a_prompt_is_told_too(session: Session, host: Puppet, monkeypatch: pytest.MonkeyPatch) -> None:
    job, looks = Job(), list[Snapshot]()
    monkeypatch.setattr("ti_trainer.training.trainer.match_attention", lambda *given: looks.append(job.snapshot()))
    job.start(replace(session, config=replace(CONFIG, max_steps=1, teacher_prompt="red star")))
    now = ended(job)
    assert [message_of(each) for each in looks] == ["The vectors are fitted to the prompt before the first step."]
    assert not now.fitting
    with Progress() as progress:
        progress.bar = tqdm(total=1, mininterval=0)
        progress(Fitting(0))
        assert progress.bar.desc == "Fitting to the prompt: "
        progress(StepDone(1, 1, 1, torch.tensor(0.25), 5.192294e-05, ()))
        assert progress.bar.postfix == "loss 0.2500, learning rate 5.19e-05"


def test_no_file_tells_of_it(session: Session, host: Puppet, tmp_path: Path) -> None:
    plain = finished(session).run.losses()
    other = Puppet(tmp_path / "other", Compiled([]))
    assert finished(replace(session, host=other)).run.losses() == plain
