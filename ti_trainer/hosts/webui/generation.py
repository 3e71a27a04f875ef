"""An image by the WebUI's own sampling, with our words in its prompts. Imported only inside the WebUI.

Whoever calls holds the queue; the host's `process_images` does not take it.
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
from ti_trainer.hosts.webui.lease import rng_kept, state_kept
from ti_trainer.hosts.webui.model import WebuiModel
from ti_trainer.hosts.webui.model_spec import PREDICTIONS
from ti_trainer.hosts.webui.text import registered
from ti_trainer.model import Vectors
from ti_trainer.offload.patching import patched

SCHEDULE, DEFAULT, ZERO_TERMINAL_SNR = "sd_noise_schedule", "Default", "Zero Terminal SNR"  # the host's setting


def generate(model: WebuiModel, request: GenerationRequest, words: Mapping[str, Vectors]) -> Image.Image:
    """Generate, also in the middle of training, which goes on afterwards as if nothing had been.

    TrainingError if that is interrupted: an image that is drawn half shows nothing.
    """
    embeddings = {name: _embedding(name, vectors, model) for name, vectors in words.items()}
    tiling, finder = model_hijack.circular_enabled, model.texts[0].finder
    no_traces = patched([(shared.cmd_opts, "no_prompt_history", True)])  # the last prompt is the user's, not ours
    with model.restored(), rng_kept(), state_kept(), no_traces, _as_trained(model), registered(finder, embeddings):
        try:
            shared.state.job_no, shared.state.job_count = 0, 1  # or its console would count an image for every step
            images = process_images(_processing(model, request)).images
        except (TITrainerError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # hours of training must not end for an image, whatever in the host went wrong
            message = f"The preview could not be drawn: {error or type(error).__name__}"
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
    """Whether the host's settings say so, which are for models that were trained so."""
    return getattr(shared.opts, SCHEDULE, DEFAULT) == ZERO_TERMINAL_SNR


@contextmanager
def _as_trained(model: WebuiModel) -> Iterator[None]:
    """The host samples by what the model is for us, where it has not found that out; afterwards as before."""
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
                pass  # somebody changed it meanwhile
            elif schedule is None:
                del settings[SCHEDULE]
            else:
                settings[SCHEDULE] = schedule
            sd_model.alphas_cumprod = alphas_cumprod


def forget_conditioning() -> None:
    """The host remembers the last prompt's conditioning, and would not notice that a word in it means something else now."""
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
        sampler_name=request.sampler or sd_samplers.visible_samplers()[0].name,
        scheduler="Automatic",
        restore_faces=False,
        tiling=False,
        override_settings=_same_checkpoint(model),
    )
    p.cached_c, p.cached_uc = [None, None], [None, None]  # not the host's own, which do not look at vectors
    return p


def _same_checkpoint(model: WebuiModel) -> dict[str, str]:
    """Should another one have been chosen meanwhile, it is loaded when our turn is over, and not in the middle of it."""
    ours = model.sd_model.sd_checkpoint_info
    chosen = sd_models.select_checkpoint()
    return {} if chosen.filename == ours.filename else {"sd_model_checkpoint": ours.title}


def _embedding(name: str, vectors: Vectors, model: WebuiModel) -> Embedding:
    """As the host makes it of a file: two encoders' vectors stay apart, a single one's are a tensor."""
    on_device = {text.encoder: vectors[text.encoder].detach().to(model.device) for text in model.texts}
    first = next(iter(on_device.values()))
    embedding = Embedding(on_device if len(on_device) > 1 else first, name)
    embedding.vectors, embedding.shape = len(first), sum(each.shape[1] for each in on_device.values())
    return embedding
