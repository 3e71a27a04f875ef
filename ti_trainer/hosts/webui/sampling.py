"""How AUTOMATIC1111's WebUI, and forks that keep its model, sample. Imported only inside such a WebUI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from modules import sd_models
from modules.sd_hijack import model_hijack
from modules.textual_inversion.textual_inversion import Embedding

from ti_trainer.hosts.webui.generation import Sampling, zero_terminal_snr_set
from ti_trainer.hosts.webui.model import WebuiModel
from ti_trainer.hosts.webui.model_spec import PREDICTIONS
from ti_trainer.offload.patching import patched


@contextmanager
def as_trained(model: WebuiModel) -> Iterator[Mapping[str, str]]:
    """Make the WebUI sample with the model's spec, where it has not detected it; then restore its settings."""
    sd_model, tiling = model.sd_model, model_hijack.circular_enabled
    alphas_cumprod = sd_model.alphas_cumprod
    parameterization = next(name for name, ours in PREDICTIONS.items() if ours == model.spec.prediction_type)
    with patched([(sd_model, "parameterization", parameterization)]):
        try:
            with zero_terminal_snr_set(model.spec.zero_terminal_snr):
                yield _same_checkpoint(model)
        finally:
            sd_model.alphas_cumprod = alphas_cumprod
            model_hijack.apply_circular(tiling)
            model_hijack.clear_comments()


SAMPLING = Sampling(Embedding, as_trained)


def _same_checkpoint(model: WebuiModel) -> dict[str, str]:
    """Keep the checkpoint: one that was chosen in the meantime is loaded once the queue is released."""
    ours = model.sd_model.sd_checkpoint_info
    chosen = sd_models.select_checkpoint()
    return {} if chosen.filename == ours.filename else {"sd_model_checkpoint": ours.title}
