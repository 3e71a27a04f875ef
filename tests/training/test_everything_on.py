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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, one with a mask."""
    folder = tmp_path / "images"
    write_images(folder, concept(CONCEPTS[0], 2, seed=1))
    paint_mask(folder)
    return folder


@pytest.fixture
def judge(tmp_path: Path) -> Path:
    class Blueness(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            blue = images[:, 2].mean(dim=(1, 2)) - images[:, 0].mean(dim=(1, 2))
            return torch.stack([-blue, blue], 1)

    torch.jit.script(Blueness()).save(str(tmp_path / "judge.pt"))
    return tmp_path / "judge.pt"


@pytest.fixture
def train(folder: Path, judge: Path, tmp_path: Path) -> Callable[..., tuple[dict[str, torch.Tensor], Run]]:
    """Trains with everything on; all copies at the end, by their names, and the run."""
    config = TrainConfig(
        max_steps=4,
        preview_every=0,
        save_every=0,
        negative=True,
        negative_lr=0.5,
        train_cfg_scale="1.5-3:cos",
        ema_rate=0.8,
        ema_every=3,
        reconstruction_weight=0.5,
        discriminator=str(judge),
        mask_outside=0.1,
        latent_sampling="random",
        clip_grad="norm",
        clip_grad_limit="0.05",
        precision="fp32",
    )

    def make(where: str, resume: Run | None = None, **options: object) -> tuple[dict[str, torch.Tensor], Run]:
        host = StandaloneHost(
            "embedded", "cpu", tmp_path / where / "embeddings", tmp_path / where / "logs", torchscript=True
        )
        if resume is None:
            embeddings_dir.create_pair(host.embeddings_dir, host.open_model(), ("zz-star", "star", 2), ("*", 3))
        weights = {key: each.clone() for key, each in _weights(host).items()}
        trainers = []
        session = Session(host, "zz-star", folder, replace(config, **options), resume)
        run = session.train(lambda trainer, run: trainers.append(trainer) or ()).run
        assert all(torch.equal(each, weights[key]) for key, each in _weights(host).items())
        return {each.name: each.vectors["clip_l"] for each in trainers[0].copies}, run

    return make


def _weights(host: StandaloneHost) -> dict[str, torch.Tensor]:
    return {
        f"{n} {key}": each for n, module in enumerate(host.open_model().modules) for key, each in module.state_dict().items()
    }


def test_accumulated_batches_teach_what_one_batch_does(train: Callable[..., tuple[dict[str, torch.Tensor], Run]]) -> None:
    whole, _ = train("whole", batch_size=4)
    parts, _ = train("parts", batch_size=2, gradient_accumulation_steps=2)
    assert list(whole) == ["zz-star", "zz-star-neg", "zz-star-ema", "zz-star-neg-ema"]
    for name, vectors in whole.items():
        assert (parts[name] - vectors).norm() < 1e-3 * vectors.norm()


def test_a_run_goes_on_bit_for_bit(train: Callable[..., tuple[dict[str, torch.Tensor], Run]]) -> None:
    whole, _ = train("whole")
    _, begun = train("parts", max_steps=2)
    resumed, run = train("parts", begun)
    assert run.path == begun.path
    for name, vectors in whole.items():
        assert torch.equal(resumed[name], vectors), name


def test_memory_that_runs_out_in_the_middle_changes_nothing(
    train: Callable[..., tuple[dict[str, torch.Tensor], Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = train("whole")
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
    train: Callable[..., tuple[dict[str, torch.Tensor], Run]], memory: str
) -> None:
    whole, _ = train("whole", gradient_accumulation_steps=2)
    found, _ = train("short", gradient_accumulation_steps=2, memory=memory)
    for name, vectors in whole.items():
        assert torch.equal(found[name], vectors), name
