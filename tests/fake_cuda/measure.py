"""Peak memory of training steps, image encoding and previews on the pretended device, in the published shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import updates
from device import GIB, FakeDevice, fake_cuda
from diffusers_models import model_of, published
from models import NAME, embeddings_for

from ti_trainer.hosts.diffusers import sampling
from ti_trainer.hosts.diffusers.loading import DTYPES
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.model import MemoryMode


@dataclass(frozen=True)
class Peaks:
    """In GiB, of everything on the device: while an image is encoded, between steps, in a step, and in a preview.

    `estimated` is what the plan expected of a step. They leave out the CUDA context, workspaces and fragmentation.
    """

    plan: str
    encoding: float
    at_rest: float
    step: float
    estimated: float
    preview: float


def peaks(
    shape: str,
    size_px: int,
    batch: int = 1,
    mode: MemoryMode = "auto",
    precision: str = "fp16",
    total_gib: float = 80,
) -> Peaks:
    """Load a model, encode an image, choose how to save memory, train, generate: as in a run on a GPU of `total_gib`."""
    with fake_cuda(total_gib * GIB) as device:
        model = model_of(published(shape, DTYPES[precision]), precision)
        with torch.no_grad():
            model.encode_images(torch.zeros(1, 3, size_px, size_px))
        encoding = device.peak
        trainer = updates.trainer_for(model, size_px=size_px, batch_size=batch)
        latent_pixels = batch * (size_px // 8) ** 2
        need = model.memory._need(latent_pixels, 0)
        model.fit_memory(latent_pixels, mode=mode)
        at_rest = device.allocated
        needed, _ = model.memory.plan.bytes_needed(need)
        device.forget()
        for _ in range(2):  # from the second on, weights are copied in advance
            updates.update(trainer)
        step = device.peak
        seen = encoding, at_rest, step, at_rest + needed, _preview(model, device, size_px)
        return Peaks(str(model.memory.plan), *(each / GIB for each in seen))


def _preview(model: DiffusersModel, device: FakeDevice, size_px: int) -> int:
    """The peak of generating an image, in bytes."""
    device.forget()
    vectors = {NAME: {key: each.to(model.device) for key, each in embeddings_for(model)[0].vectors.items()}}
    latents = torch.zeros(1, 4, size_px // 8, size_px // 8, device=model.device)
    with torch.no_grad():  # the samplers of diffusers do not work with fake tensors
        cond = model.encode_prompts(["", f"a photo of {NAME}"], vectors)
        images = sampling.whole_image(model, size_px, size_px).repeat(2)
        model.predict(latents.repeat(2, 1, 1, 1), torch.zeros(2, device=model.device), cond, images)
        model.decode(latents)
    return device.peak
