"""Generates an image with the WebUI's own sampling and our embeddings. Imported only inside a WebUI.

The caller holds the queue; the WebUI's `process_images` does not acquire it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from modules import sd_samplers, shared
from modules.processing import StableDiffusionProcessingTxt2Img, process_images
from PIL import Image

from ti_trainer.errors import TITrainerError, TrainingError
from ti_trainer.host import GenerationRequest
from ti_trainer.hosts.webui import forks
from ti_trainer.hosts.webui.lease import rng_kept, state_kept
from ti_trainer.hosts.webui.model import WebuiModel
from ti_trainer.hosts.webui.text import registered
from ti_trainer.model import DiffusionModel, Vectors
from ti_trainer.offload.patching import patched

SCHEDULE, DEFAULT, ZERO_TERMINAL_SNR = "sd_noise_schedule", "Default", "Zero Terminal SNR"  # the host's setting


@dataclass(frozen=True)
class Sampling:
    """How one WebUI samples.

    `embedding(vec, name)` makes an entry of its database. Within `as_trained(model)` it samples with the model's spec; that
    gives the settings of the image, and restores everything afterwards.
    """

    embedding: Callable[[Any, str], Any]
    as_trained: Callable[[WebuiModel], AbstractContextManager[Mapping[str, Any]]]


def generate(
    model: DiffusionModel, request: GenerationRequest, embeddings: Mapping[str, Vectors], sampling: Sampling
) -> Image.Image:
    """Generate an image, also in the middle of training, which it does not affect.

    TrainingError if it fails or is interrupted: an unfinished image shows nothing. TypeError for another host's model.
    """
    if not isinstance(model, WebuiModel):
        message = f"expected a WebuiModel, found {type(model).__name__}"
        raise TypeError(message)
    host_embeddings = {name: host_embedding(sampling, name, vectors, model) for name, vectors in embeddings.items()}
    with ExitStack() as stack:
        for context in (model.restored(), rng_kept(), state_kept()):
            stack.enter_context(context)
        stack.enter_context(patched([(shared.cmd_opts, "no_prompt_history", True)]))  # keep the user's last prompt
        settings = stack.enter_context(sampling.as_trained(model))
        for finder in {id(each.finder): each.finder for each in model.texts}.values():
            stack.enter_context(registered(finder, host_embeddings))
        try:
            shared.state.job_no, shared.state.job_count = 0, 1  # or its console would count an image for every step
            images = process_images(_processing(model, request, settings)).images
        except (TITrainerError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # no error in the WebUI may end hours of training
            message = f"The image could not be generated: {error or type(error).__name__}"
            raise TrainingError(message) from error
        finally:
            shared.total_tqdm.clear()
        if shared.state.interrupted or shared.state.stopping_generation or not images:
            message = "the WebUI was interrupted."
            raise TrainingError(message)
    return images[0]


def samples_zero_terminal_snr() -> bool:
    """Whether the WebUI is set to sample with a zero terminal SNR."""
    return getattr(shared.opts, SCHEDULE, DEFAULT) == ZERO_TERMINAL_SNR


@contextmanager
def zero_terminal_snr_set(wanted: bool) -> Iterator[None]:
    """Within it the WebUI's setting for sampling with a zero terminal SNR is on or off."""
    settings, schedule = shared.opts.data, shared.opts.data.get(SCHEDULE)
    name = ZERO_TERMINAL_SNR if wanted else DEFAULT
    try:
        if wanted != samples_zero_terminal_snr():
            settings[SCHEDULE] = name
        yield
    finally:
        if settings.get(SCHEDULE) != name:
            pass  # it was changed in the meantime
        elif schedule is None:
            del settings[SCHEDULE]
        else:
            settings[SCHEDULE] = schedule


def forget_conditioning() -> None:
    """Clear the WebUI's cache of the last prompt's conditioning, which does not notice that an embedding has changed."""
    for name in ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc"):
        if hasattr(StableDiffusionProcessingTxt2Img, name):
            owner = next(each for each in StableDiffusionProcessingTxt2Img.__mro__ if name in vars(each))
            setattr(owner, name, [None, None])


def _processing(
    model: WebuiModel, request: GenerationRequest, settings: Mapping[str, Any]
) -> StableDiffusionProcessingTxt2Img:
    p = StableDiffusionProcessingTxt2Img(
        sd_model=model.sd_model,
        do_not_save_samples=True,
        do_not_save_grid=True,
        do_not_reload_embeddings=True,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        steps=request.steps,
        cfg_scale=request.cfg_scale,
        seed=request.seed,
        width=request.width or model.default_size_px,
        height=request.height or model.default_size_px,
        sampler_name=request.sampler or sd_samplers.visible_sampler_names()[0],
        restore_faces=False,
        tiling=False,
        override_settings=dict(settings),
    )
    if hasattr(p, "scheduler"):  # in Forge Classic it is part of the sampler
        p.scheduler = "Automatic"
    forks.without_scripts(p)
    p.cached_c, p.cached_uc = [None, None], [None, None]  # instead of the shared caches, which ignore vectors
    return p


def host_embedding(sampling: Sampling, name: str, vectors: Vectors, model: WebuiModel) -> Any:
    """As the WebUI makes it from a file: a dict of two encoders' vectors, or one encoder's tensor."""
    on_device = {text.encoder: vectors[text.encoder].detach().to(model.device) for text in model.texts}
    first = next(iter(on_device.values()))
    embedding = sampling.embedding(on_device if len(on_device) > 1 else first, name)
    embedding.vectors, embedding.shape = len(first), sum(each.shape[1] for each in on_device.values())
    return embedding
