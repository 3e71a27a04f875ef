"""Peak memory of training steps, image encoding and previews on the pretended device, in the published shapes."""

from __future__ import annotations

from dataclasses import dataclass

import steps
import torch
from device import GIB, FakeDevice, fake_cuda
from models import NAME, embeddings_for, model_of, published

from ti_trainer.hosts.diffusers import sampling
from ti_trainer.hosts.diffusers.loading import DTYPES
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.model import MemoryMode


@dataclass(frozen=True)
class Peaks:
    """In GiB, of everything on the device: at rest, in a training step and before, and what the plan had estimated.

    They leave out the CUDA context, the kernels' workspace and fragmentation.
    """

    plan: str
    loading: float
    at_rest: float
    step: float
    estimated: float
    preview: float | None = None


def peaks(
    shape: str,
    size_px: int,
    batch: int = 1,
    mode: MemoryMode = "auto",
    precision: str = "fp16",
    total_gib: float = 80,
    *,
    preview: bool = False,
) -> Peaks:
    """Load a model, encode an image, choose how to save memory, and train: as in a run on a GPU of `total_gib`."""
    with fake_cuda(total_gib * GIB) as device:
        model = model_of(published(shape, DTYPES[precision]), precision)
        with torch.no_grad():
            model.encode_images(torch.zeros(1, 3, size_px, size_px))
        trainer = steps.trainer_for(model, size_px=size_px, batch_size=batch)
        latent_pixels = batch * (size_px // 8) ** 2
        need = model.memory._need(latent_pixels, 0)
        model.fit_memory(latent_pixels, mode=mode)
        loading, at_rest = device.peak, device.allocated
        needed, _ = model.memory.plan.bytes_needed(need)
        device.forget()
        for _ in range(2):  # from the second on, weights are copied in advance
            steps.update(trainer)
        step = device.peak
        seen = _preview(model, device, size_px) if preview else None
        return Peaks(str(model.memory.plan), loading / GIB, at_rest / GIB, step / GIB, (at_rest + needed) / GIB, seen)


def _preview(model: DiffusersModel, device: FakeDevice, size_px: int) -> float:
    """The peak of generating an image, in GiB."""
    device.forget()
    vectors = {NAME: {key: each.to(model.device) for key, each in embeddings_for(model)[0].vectors.items()}}
    latents = torch.zeros(1, 4, size_px // 8, size_px // 8, device=model.device)
    with torch.no_grad():  # the samplers of diffusers do not work with fake tensors
        cond = model.encode_prompts(["", f"a photo of {NAME}"], vectors)
        images = sampling.whole_image(model, size_px, size_px).repeat(2)
        model.predict(latents.repeat(2, 1, 1, 1), torch.zeros(2, device=model.device), cond, images)
        model.decode(latents)
    return device.peak / GIB
