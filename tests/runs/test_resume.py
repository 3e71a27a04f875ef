"""Resume is exact: 10 steps are 5 steps, a stop, a new process, and 5 steps, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fakes import TinyHost

from ti_trainer import formats
from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Dataset
from ti_trainer.errors import ConfigError, TrainingError
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Controls, Result, Session
from ti_trainer.training.trainer import Event, StepDone, Trainer, TrainState

if TYPE_CHECKING:
    from ti_trainer.hosts.diffusers.model import DiffusersModel

MIXED = ((16, 16), (24, 16), (16, 16), (16, 24), (24, 16))
TAGS = {"shuffle_tags": True, "tag_dropout": 0.3}


def assert_same_state(ours: TrainState, theirs: TrainState) -> None:
    """Bit for bit."""
    assert (ours.step, ours.micro_step) == (theirs.step, theirs.micro_step)
    assert all(torch.equal(vectors, theirs.vectors[encoder]) for encoder, vectors in ours.vectors.items())
    for mine, other in zip(ours.optimizers, theirs.optimizers, strict=True):
        assert mine["param_groups"] == other["param_groups"]
        for index, moments in mine["state"].items():
            for key, value in moments.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(other["state"][index][key])), key


def steps_of(trainer: Trainer) -> list[tuple[int, int, int, float, float, tuple[str, ...]]]:
    events = [event for event in trainer.run() if isinstance(event, StepDone)]
    return [(each.step, each.epoch, each.epoch_step, each.loss.item(), each.learning_rate, each.prompts) for each in events]


VARIANTS: list[dict[str, Any]] = [
    {},
    {"latent_sampling": "random", "prompter": TAGS},
    {"latent_sampling": "random", "prompter": TAGS, "sizes": MIXED, "batch_size": 2, "gradient_accumulation_steps": 3},
    {"learning_rate": "0.01:3, 0.002:7, 5e-4", "clip_grad": "norm", "clip_grad_limit": "0.01:4, 0.005", "repeats": 2},
]


@pytest.mark.parametrize("stop_at", [1, 5, 9])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    trainer: Callable[..., Trainer], dataset: Callable[..., Dataset], tmp_path: Path, variant: dict[str, Any], stop_at: int
) -> None:
    options = dict(variant)
    about_data = {key: options.pop(key) for key in ("latent_sampling", "prompter", "repeats") if key in options}
    sizes = options.pop("sizes", ((16, 16),) * 5)
    whole = trainer(data=dataset(*sizes, **about_data), **options)
    steps = steps_of(whole)

    first = trainer(data=dataset(*sizes, **about_data), **options)
    events = first.run(should_stop=lambda: first.step == stop_at)
    assert [event.step for event in events][-1] == stop_at
    run = Run.create(tmp_path, "x-word", {"name": "x-word"})
    run.save_state(first.state(), first.dataset.fingerprint)

    state, fingerprint = Run.latest(tmp_path, "x-word").load_state()
    torch.manual_seed(1234)  # another process
    second = trainer(data=dataset(*sizes, **about_data), state=state, **options)
    assert fingerprint == second.dataset.fingerprint
    assert_same_state(second.state(), first.state())
    assert steps_of(second) == steps[stop_at:]
    assert_same_state(second.state(), whole.state())


def test_on_stable_diffusion_too(
    embedded_model: DiffusersModel, trainer: Callable[..., Trainer], dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    data = dataset((32, 32), (40, 32), (32, 32), model=embedded_model, latent_sampling="random", prompter=TAGS)
    whole = trainer(embedded_model, data, max_steps=4, gradient_accumulation_steps=2)
    steps = steps_of(whole)
    first = trainer(embedded_model, data, max_steps=4, gradient_accumulation_steps=2)
    list(first.run(should_stop=lambda: first.step == 2))
    run = Run(tmp_path)
    run.save_state(first.state(), "")
    second = trainer(embedded_model, data, state=run.load_state()[0], max_steps=4, gradient_accumulation_steps=2)
    assert steps_of(second) == steps[2:]
    assert_same_state(second.state(), whole.state())


CONFIG = TrainConfig(
    max_steps=10, batch_size=2, gradient_accumulation_steps=2, do_not_resize=True, latent_sampling="random",
    shuffle_tags=True, tag_dropout=0.3, preview_every=3, save_every=4, csv_every=1,
)  # fmt: skip


def prepared(folder: Path) -> TinyHost:
    host = TinyHost(folder)
    embeddings_dir.create(host.embeddings_dir, host.model, "x-word", "red cat", 2)
    return host


def session(host: TinyHost, images: Path, *, resume: bool = False, until: int = 99) -> Result:
    """One training, from files to files."""
    controls = Controls()

    def stop(event: Event) -> None:
        if event.step >= until:
            controls.stop.set()

    earlier = Run.latest(host.log_dir, "x-word") if resume else None
    return Session(host, "x-word", images, CONFIG, earlier).train(lambda trainer, run: [stop], controls)


@pytest.fixture
def two_hosts(tmp_path: Path, images: Callable[..., Path]) -> tuple[TinyHost, TinyHost, Path]:
    folder = images(*MIXED)
    return prepared(tmp_path / "one"), prepared(tmp_path / "two"), folder


def test_a_session_goes_on_exactly_with_previews_in_between(two_hosts: tuple[TinyHost, TinyHost, Path]) -> None:
    one, two, folder = two_hosts
    whole = session(one, folder)
    half = session(two, folder, until=5)
    assert (half.reason, half.embedding.step) == ("interrupted", 5)
    rest = session(two, folder, resume=True)
    assert rest.reason == whole.reason == "done"
    assert rest.run.path == half.run.path
    assert rest.run.loss_file.read_bytes() == whole.run.loss_file.read_bytes()
    assert [row["step"] for row in rest.run.losses()] == list(range(1, 11))
    assert_same_state(rest.run.load_state()[0], whole.run.load_state()[0])
    kept, expected = formats.read(rest.embedding_file), formats.read(whole.embedding_file)
    assert torch.equal(kept.vectors["clip_l"], expected.vectors["clip_l"])
    assert kept.step == expected.step == 10
    names = {path.relative_to(rest.run.path).as_posix() for path in rest.run.path.rglob("*.*")}
    assert names >= {path.relative_to(whole.run.path).as_posix() for path in whole.run.path.rglob("*.*")}


def test_losses_of_steps_after_the_kept_state_are_not_told_twice(two_hosts: tuple[TinyHost, TinyHost, Path]) -> None:
    """A crash: the state is of step 5, the table already at 8."""
    one, two, folder = two_hosts
    whole = session(one, folder)
    five = session(two, folder, until=5)
    state = (five.run.path / "state.safetensors").read_bytes()
    session(two, folder, resume=True, until=8)
    (five.run.path / "state.safetensors").write_bytes(state)
    rest = session(two, folder, resume=True)
    assert rest.run.loss_file.read_bytes() == whole.run.loss_file.read_bytes()
    assert_same_state(rest.run.load_state()[0], whole.run.load_state()[0])


def test_other_images_are_told_of(two_hosts: tuple[TinyHost, TinyHost, Path], caplog: pytest.LogCaptureFixture) -> None:
    one, _, folder = two_hosts
    session(one, folder, until=5)
    caplog.clear()
    session(one, folder, resume=True, until=6)
    assert "not exactly" not in caplog.text
    (folder / "0.txt").write_text("another caption")
    session(one, folder, resume=True, until=7)
    assert "resumed, but not exactly" in caplog.text


def test_a_finished_run_cannot_go_on(two_hosts: tuple[TinyHost, TinyHost, Path]) -> None:
    one, _, folder = two_hosts
    session(one, folder)
    with pytest.raises(ConfigError, match=r"trained for 10 steps already.*raise max steps"):
        session(one, folder, resume=True)


@pytest.mark.parametrize("num_vectors", [1, 3])
def test_a_state_of_other_vectors_is_refused(two_hosts: tuple[TinyHost, TinyHost, Path], num_vectors: int) -> None:
    """The embedding was made anew meanwhile: nothing is stretched to fit."""
    one, _, folder = two_hosts
    result = session(one, folder, until=5)
    before = embeddings_dir.create(one.embeddings_dir, one.model, "x-word", "cat", num_vectors, overwrite=True).read_bytes()
    with pytest.raises(TrainingError, match="Start a new run"):
        session(one, folder, resume=True)
    assert result.embedding_file.read_bytes() == before


def test_an_embedding_that_cannot_be_written_loses_nothing(
    two_hosts: tuple[TinyHost, TinyHost, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _, folder = two_hosts

    def refuse(embedding: object, file: Path, warn: object) -> None:
        raise PermissionError(13, "Permission denied", str(file))

    with monkeypatch.context() as patch:
        patch.setattr(embeddings_dir, "save", refuse)
        with pytest.raises(TrainingError, match=r"could not be written.*x-word-5\.safetensors"):
            session(one, folder, until=5)
    run = Run.latest(one.log_dir, "x-word")
    assert run.step == 5
    assert formats.read(dict(run.copies())[5]).step == 5
    assert session(one, folder, resume=True).embedding.step == 10
