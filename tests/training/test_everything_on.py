"""All of DreamArtist together, on the model that ships: the laws of batches, of resuming and of a frozen network hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import paint_mask

from ti_trainer.config.training import TrainConfig
from ti_trainer.formats import embeddings_dir
from ti_trainer.hosts.diffusers.host import StandaloneHost
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session
from ti_trainer.tiny_model.making.scenes import CONCEPTS, concept, write_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images, one with a mask."""
    folder = tmp_path_factory.mktemp("dataset") / "images"
    write_images(folder, concept(CONCEPTS[0], 2, seed=1))
    paint_mask(folder)
    return folder


@pytest.fixture(scope="module")
def discriminator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    class Blueness(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            blue = images[:, 2].mean(dim=(1, 2)) - images[:, 0].mean(dim=(1, 2))
            return torch.stack([-blue, blue], 1)

    file = tmp_path_factory.mktemp("discriminator") / "blueness.pt"
    torch.jit.script(Blueness()).save(str(file))
    return file


@pytest.fixture(scope="module")
def train(
    folder: Path, discriminator: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[dict[str, torch.Tensor], Run]]:
    """Trains with everything on; all copies at the end, by their names, and the run."""
    config = TrainConfig(
        max_steps=4,
        learning_rate="0.005",
        preview_every=0,
        save_every=0,
        negative=True,
        negative_lr=0.5,
        train_cfg_scale="1.5-3:cos",
        ema_rate=0.8,
        ema_every=3,
        reconstruction_weight=0.5,
        discriminator=str(discriminator),
        mask_outside=0.1,
        latent_sampling="random",
        clip_grad="norm",
        clip_grad_limit="0.05",
        precision="fp32",
    )
    host, runs = StandaloneHost("embedded", "cpu", torchscript=True), tmp_path_factory.mktemp("runs")

    def make(where: str, resume: Run | None = None, **options: object) -> tuple[dict[str, torch.Tensor], Run]:
        host.embeddings_dir, host.log_dir = runs / where / "embeddings", runs / where / "logs"
        if resume is None:
            embeddings_dir.create_pair(host.embeddings_dir, host.open_model(), ("zz-star", "star", 2), ("*", 3))
        weights = {key: each.clone() for key, each in _weights(host).items()}
        trainers = []
        session = Session(host, "zz-star", folder, replace(config, **options), resume)
        run = session.train(lambda trainer, run: trainers.append(trainer) or ()).run
        assert all(torch.equal(each, weights[key]) for key, each in _weights(host).items())
        return {each.name: each.vectors["clip_l"] for each in trainers[0].copies}, run

    return make


@pytest.fixture(scope="module")
def whole(train: Callable[..., tuple[dict[str, torch.Tensor], Run]]) -> dict[str, torch.Tensor]:
    """What a run without interruption learns."""
    return train("whole")[0]


@pytest.fixture(scope="module")
def whole_of_two(train: Callable[..., tuple[dict[str, torch.Tensor], Run]]) -> dict[str, torch.Tensor]:
    """What one of three steps learns that accumulates two batches in each."""
    return train("whole-of-two", max_steps=3, gradient_accumulation_steps=2)[0]


def _weights(host: StandaloneHost) -> dict[str, torch.Tensor]:
    return {
        f"{n} {key}": each for n, module in enumerate(host.open_model().modules) for key, each in module.state_dict().items()
    }


def test_accumulated_batches_teach_what_one_batch_does(train: Callable[..., tuple[dict[str, torch.Tensor], Run]]) -> None:
    whole, _ = train("one-batch", max_steps=3, batch_size=4)
    parts, _ = train("two-batches", max_steps=3, batch_size=2, gradient_accumulation_steps=2)
    assert list(whole) == ["zz-star", "zz-star-neg", "zz-star-ema", "zz-star-neg-ema"]
    for name, vectors in whole.items():
        assert (parts[name] - vectors).norm() < 1e-3 * vectors.norm()


def test_a_run_resumes_bit_for_bit(
    train: Callable[..., tuple[dict[str, torch.Tensor], Run]], whole: dict[str, torch.Tensor]
) -> None:
    _, begun = train("parts", max_steps=2)
    resumed, run = train("parts", begun)
    assert run.path == begun.path
    for name, vectors in whole.items():
        assert torch.equal(resumed[name], vectors), name


def test_memory_that_runs_out_in_the_middle_changes_nothing(
    train: Callable[..., tuple[dict[str, torch.Tensor], Run]],
    whole: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predict, calls = DiffusersModel.predict, []

    def exhausted(model: DiffusersModel, *given: object) -> torch.Tensor:
        calls.append(len(calls))
        if calls[-1] == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return predict(model, *given)

    monkeypatch.setattr(DiffusersModel, "predict", exhausted)
    found, run = train("short")
    assert len(calls) == 4 + 1
    assert [row["step"] for row in run.losses()] == [4]
    for name, vectors in whole.items():
        assert torch.equal(found[name], vectors), name


@pytest.mark.parametrize("memory", ["checkpointing", "offload-all"])
def test_with_little_memory_a_run_learns_the_same(
    train: Callable[..., tuple[dict[str, torch.Tensor], Run]], whole_of_two: dict[str, torch.Tensor], memory: str
) -> None:
    found, _ = train(memory, max_steps=3, gradient_accumulation_steps=2, memory=memory)
    for name, vectors in whole_of_two.items():
        assert torch.equal(found[name], vectors), name
