"""Generates an image with the WebUI's own sampling and our embeddings. Imported only inside the WebUI.

The caller holds the queue; the WebUI's `process_images` does not acquire it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from modules import sd_models, sd_samplers, shared
from modules.processing import StableDiffusionProcessingTxt2Img, process_images
from modules.sd_hijack import model_hijack
from modules.textual_inversion.textual_inversion import Embedding
from PIL import Image

from ti_trainer.errors import TITrainerError, TrainingError
from ti_trainer.host import GenerationRequest
from ti_trainer.hosts.webui import forks
from ti_trainer.hosts.webui.lease import rng_kept, state_kept
from ti_trainer.hosts.webui.model import WebuiModel
from ti_trainer.hosts.webui.model_spec import PREDICTIONS
from ti_trainer.hosts.webui.text import registered
from ti_trainer.model import Vectors
from ti_trainer.offload.patching import patched

SCHEDULE, DEFAULT, ZERO_TERMINAL_SNR = "sd_noise_schedule", "Default", "Zero Terminal SNR"  # the host's setting


def generate(model: WebuiModel, request: GenerationRequest, embeddings: Mapping[str, Vectors]) -> Image.Image:
    """Generate an image, also in the middle of training, which it does not affect.

    TrainingError if it fails or is interrupted: an unfinished image shows nothing.
    """
    host_embeddings = {name: _embedding(name, vectors, model) for name, vectors in embeddings.items()}
    tiling, finder = model_hijack.circular_enabled, model.texts[0].finder
    no_history = patched([(shared.cmd_opts, "no_prompt_history", True)])  # keep the user's last prompt
    with model.restored(), rng_kept(), state_kept(), no_history, _as_trained(model), registered(finder, host_embeddings):
        try:
            shared.state.job_no, shared.state.job_count = 0, 1  # or its console would count an image for every step
            images = process_images(_processing(model, request)).images
        except (TITrainerError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # no error in the WebUI may end hours of training
            message = f"The image could not be generated: {error or type(error).__name__}"
            raise TrainingError(message) from error
        finally:
            model_hijack.apply_circular(tiling)
            model_hijack.clear_comments()
            shared.total_tqdm.clear()
        if shared.state.interrupted or shared.state.stopping_generation or not images:
            message = "the WebUI was interrupted."
            raise TrainingError(message)
    return images[0]


def samples_zero_terminal_snr() -> bool:
    """Whether the WebUI is set to sample with a zero terminal SNR."""
    return getattr(shared.opts, SCHEDULE, DEFAULT) == ZERO_TERMINAL_SNR


@contextmanager
def _as_trained(model: WebuiModel) -> Iterator[None]:
    """Make the WebUI sample with the model's spec, where it has not detected it; then restore its settings."""
    sd_model, settings, spec = model.sd_model, shared.opts.data, model.spec
    alphas_cumprod, schedule = sd_model.alphas_cumprod, settings.get(SCHEDULE)
    wanted = ZERO_TERMINAL_SNR if spec.zero_terminal_snr else DEFAULT
    parameterization = next(name for name, ours in PREDICTIONS.items() if ours == spec.prediction_type)
    with patched([(sd_model, "parameterization", parameterization)]):
        try:
            if spec.zero_terminal_snr != samples_zero_terminal_snr():
                settings[SCHEDULE] = wanted
            yield
        finally:
            if settings.get(SCHEDULE) != wanted:
                pass  # it was changed in the meantime
            elif schedule is None:
                del settings[SCHEDULE]
            else:
                settings[SCHEDULE] = schedule
            sd_model.alphas_cumprod = alphas_cumprod


def forget_conditioning() -> None:
    """Clear the WebUI's cache of the last prompt's conditioning, which does not notice that an embedding has changed."""
    for name in ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc"):
        if hasattr(StableDiffusionProcessingTxt2Img, name):
            owner = next(each for each in StableDiffusionProcessingTxt2Img.__mro__ if name in vars(each))
            setattr(owner, name, [None, None])


def _processing(model: WebuiModel, request: GenerationRequest) -> StableDiffusionProcessingTxt2Img:
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
        scheduler="Automatic",
        restore_faces=False,
        tiling=False,
        override_settings=_same_checkpoint(model),
    )
    forks.without_scripts(p)
    p.cached_c, p.cached_uc = [None, None], [None, None]  # instead of the shared caches, which ignore vectors
    return p


def _same_checkpoint(model: WebuiModel) -> dict[str, str]:
    """Keep the checkpoint: one that was chosen in the meantime is loaded once the queue is released."""
    ours = model.sd_model.sd_checkpoint_info
    chosen = sd_models.select_checkpoint()
    return {} if chosen.filename == ours.filename else {"sd_model_checkpoint": ours.title}


def _embedding(name: str, vectors: Vectors, model: WebuiModel) -> Embedding:
    """As the WebUI makes it from a file: a dict of two encoders' vectors, or one encoder's tensor."""
    on_device = {text.encoder: vectors[text.encoder].detach().to(model.device) for text in model.texts}
    first = next(iter(on_device.values()))
    embedding = Embedding(on_device if len(on_device) > 1 else first, name)
    embedding.vectors, embedding.shape = len(first), sum(each.shape[1] for each in on_device.values())
    return embedding
