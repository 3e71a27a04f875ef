"""How Forge samples. Imported only inside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from modules import sd_models

from ti_trainer.hosts.webui.generation import Sampling, zero_terminal_snr_set
from ti_trainer.hosts.webui.model import WebuiModel
from ti_trainer.offload.patching import patched


@contextmanager
def as_trained(model: WebuiModel) -> Iterator[Mapping[str, str]]:
    """Make Forge sample with the loaded checkpoint and the model's spec; then restore its settings."""
    engine, spec = model.sd_model.engine, model.spec
    predictor = engine.forge_objects_original.unet.model.predictor
    sigmas = predictor.sigmas, predictor.log_sigmas
    changes = [
        (predictor, "prediction_type", spec.prediction_type),
        (engine.model_config, "ztsnr", spec.zero_terminal_snr),
    ]
    with patched(changes), zero_terminal_snr_set(spec.zero_terminal_snr), _same_checkpoint(model.sd_model.loaded_with):
        try:
            yield {}
        finally:
            predictor.sigmas, predictor.log_sigmas = sigmas  # Forge does not restore them after an error


SAMPLING = Sampling(lambda vec, name: SimpleNamespace(vec=vec, name=name), as_trained)


@contextmanager
def _same_checkpoint(loaded_with: Mapping[str, Any]) -> Iterator[None]:
    """Keep the checkpoint: Forge loads one that was chosen in the meantime as soon as it generates."""
    data = sd_models.model_data
    chosen = data.forge_loading_parameters
    data.forge_loading_parameters = loaded_with
    try:
        yield
    finally:
        if data.forge_loading_parameters is loaded_with:  # otherwise the user has chosen another just now
            data.forge_loading_parameters = chosen
