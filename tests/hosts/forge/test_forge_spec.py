"""Which checkpoints of Forge's can be trained, and what differs between its forks."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from forge_networks import Predictor, make_engine

from ti_trainer.errors import ModelError
from ti_trainer.host import ModelOptions
from ti_trainer.hosts.forge.model_spec import spec_of
from ti_trainer.hosts.forge.variants import silent, upcasts_attention
from ti_trainer.offload.patching import patched


def refusal(engine: Any) -> str:
    with pytest.raises(ModelError) as caught:
        spec_of(engine)
    return str(caught.value)


class Flux(SimpleNamespace):
    """Another engine."""


@pytest.mark.parametrize("stored", ["nf4", "gguf", torch.float8_e4m3fn])
def test_quantised_weights_are_refused(tmp_path: Path, stored: Any) -> None:
    engine = make_engine("SD 1.x", tmp_path)
    engine.forge_objects.unet.model.diffusion_model.storage_dtype = stored
    name = str(stored).removeprefix("torch.")
    assert refusal(engine).startswith(f"tiny is stored in 8 bits or less ({name}), which is too coarse for training:")


def test_a_quantised_text_encoder_is_refused(tmp_path: Path) -> None:
    engine = make_engine("SD 1.x", tmp_path)
    engine.forge_objects.clip.cond_stage_model.to(torch.float8_e4m3fn)
    assert "(float8_e4m3fn)" in refusal(engine)


@pytest.mark.parametrize("prediction_type", ["const", "edm"])
def test_flow_and_edm_are_refused(tmp_path: Path, prediction_type: str) -> None:
    engine = make_engine("SDXL", tmp_path)
    engine.forge_objects.unet.model.predictor = Predictor(prediction_type)
    assert f"tiny is a model that predicts neither noise nor v ({prediction_type})." in refusal(engine)


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    flux = Flux(is_sd1=False, is_sd2=False, is_sdxl=False)
    flux.sd_checkpoint_info = SimpleNamespace(model_name="big")
    assert refusal(flux).startswith("big is a Flux model. SD 1.x, SD 2.x and SDXL can be trained")
    refiner = make_engine("SDXL", tmp_path)
    del refiner.text_processing_engine_l
    assert "tiny is an SDXL refiner" in refusal(refiner)
    edm = make_engine("SDXL", tmp_path)
    edm.model_config.model_type = SimpleNamespace(name="V_PREDICTION_EDM")
    assert "EDM's noise schedule" in refusal(edm)
    assert "8 channels" in refusal(make_engine("SD 1.x", tmp_path, in_channels=8))


def test_zero_terminal_snr_and_inpainting_are_found(tmp_path: Path) -> None:
    engine = make_engine("SD 1.x", tmp_path, in_channels=9)
    engine.model_config.ztsnr = True
    engine.forge_objects.unet.model.predictor.prediction_type = "v_prediction"
    spec = spec_of(engine)
    assert spec.zero_terminal_snr
    assert spec.inpainting
    assert not spec_of(engine, ModelOptions(zero_terminal_snr="off")).zero_terminal_snr


def test_a_variant_that_prints_in_each_forward_pass_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    module = ModuleType("classic_engine")
    exec("def forward():\n    print('[Textual Inversion]')", vars(module))  # noqa: S102
    with patched(silent(module)):
        module.forward()
    assert capsys.readouterr().out == ""
    module.forward()
    assert capsys.readouterr().out == "[Textual Inversion]\n"


def test_attention_is_computed_in_float32_if_forge_is_set_so() -> None:
    forced = SimpleNamespace(get_attn_precision=lambda precision: torch.float32)
    assert upcasts_attention(forced)
    assert not upcasts_attention(SimpleNamespace(get_attn_precision=lambda precision: precision))
    assert not upcasts_attention(SimpleNamespace()), "Neo has no such function"
