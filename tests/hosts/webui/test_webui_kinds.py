"""What a loaded checkpoint is, found out from the modules that the host has made, its file and our options."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from networks import SIZE_KEYS
from safetensors.torch import save_file

from ti_trainer.errors import ConfigError, ModelError
from ti_trainer.host import ModelOptions
from ti_trainer.hosts.webui.model_spec import spec_of


def stage(encoder: str) -> Any:
    return SimpleNamespace(wrapped=type(encoder, (), {})(), tokenize_line=None, input_key="txt")


def of_ldm(encoder: str = "FrozenCLIPEmbedder", key: str = "crossattn", channels: int = 4, **changed: Any) -> Any:
    model = SimpleNamespace(conditioning_key=key, diffusion_model=SimpleNamespace(in_channels=channels))
    own = {"model": model, "cond_stage_model": stage(encoder), "parameterization": "eps"}
    return SimpleNamespace(**own | changed, sd_checkpoint_info=SimpleNamespace(model_name="tiny"))


def of_sgm(
    *encoders: str, channels: int = 4, keys: tuple[str, ...] = SIZE_KEYS, file: Path = Path("/no"), **changed: Any
) -> Any:
    names = encoders or ("FrozenCLIPEmbedder", "FrozenOpenCLIPEmbedder2")
    embedders = [*map(stage, names), *(SimpleNamespace(input_key=key) for key in keys)]
    network = of_ldm(channels=channels, conditioner=SimpleNamespace(embedders=embedders), is_sdxl=True, **changed)
    network.sd_checkpoint_info.filename = str(file)
    return network


@pytest.mark.parametrize(
    ("network", "kind"),
    [
        (of_ldm(), "SD 1.x, epsilon prediction"),
        (of_ldm(key="hybrid", channels=9), "SD 1.x inpainting, epsilon prediction"),
        (of_ldm("FrozenOpenCLIPEmbedder"), "SD 2.x, epsilon prediction"),
        (of_ldm("FrozenOpenCLIPEmbedder", parameterization="v"), "SD 2.x, v prediction"),
        (of_ldm("FrozenOpenCLIPEmbedder", "hybrid", 9), "SD 2.x inpainting, epsilon prediction"),
        (of_sgm(), "SDXL, epsilon prediction"),
        (of_sgm(is_ssd=True), "SDXL, epsilon prediction"),
        (of_sgm(channels=9), "SDXL inpainting, epsilon prediction"),
        (of_sgm(parameterization="v"), "SDXL, v prediction"),
    ],
)
def test_it_is_what_the_host_has_made_of_it(network: Any, kind: str) -> None:
    assert str(spec_of(network)) == kind


@pytest.mark.parametrize(
    ("network", "kind"),
    [
        (of_ldm(is_sd3=True), "tiny is a Stable Diffusion 3 model"),
        (of_ldm(key="hybrid", channels=8), "conditioned on more than text .hybrid, 8 channels"),
        (of_ldm(key="hybrid", channels=5), "hybrid, 5 channels"),
        (of_ldm(key="crossattn-adm"), "crossattn-adm"),
        (of_ldm("BertSeriesModelWithTransformation"), "another text encoder than CLIP .BertSeries"),
        (of_ldm(parameterization="x0"), "neither noise nor v"),
        (of_sgm("FrozenOpenCLIPEmbedder2", keys=(*SIZE_KEYS[:2], "aesthetic_score")), "an SDXL refiner"),
        (of_sgm("FrozenOpenCLIPEmbedder"), "other text encoders .FrozenOpenCLIPEmbedder"),
        (of_sgm(keys=(*SIZE_KEYS, "aesthetic_score")), "conditioned on more than text and sizes .aesthetic_score"),
        (of_sgm(channels=8), "with 8 input channels"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(network: Any, kind: str) -> None:
    with pytest.raises(ModelError, match=f"{kind}.*Choose another checkpoint"):
        spec_of(network)


def test_an_sdxl_file_says_what_the_host_passes_over(tmp_path: Path) -> None:
    def named(*marks: str) -> Any:
        file = tmp_path / f"{len(marks)}{''.join(marks)}.safetensors"
        save_file({"a": torch.zeros(2), **{mark: torch.zeros(0) for mark in marks}}, file)
        return of_sgm(file=file)

    assert str(spec_of(named())) == "SDXL, epsilon prediction"
    assert str(spec_of(named("v_pred"))) == "SDXL, v prediction"
    assert str(spec_of(named("v_pred", "ztsnr"))) == "SDXL, v prediction, zero terminal SNR"
    assert str(spec_of(named("v_pred", "ztsnr"), ModelOptions(prediction_type="epsilon"))) == "SDXL, epsilon prediction"
    off = ModelOptions(zero_terminal_snr="off")
    assert str(spec_of(named("v_pred", "ztsnr"), off)) == "SDXL, v prediction"
    with pytest.raises(ModelError, match="EDM's noise schedule"):
        spec_of(named("edm_mean"))


def test_a_file_written_anew_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(2)}, file)
    assert spec_of(of_sgm(file=file)).prediction_type == "epsilon"
    save_file({"a": torch.zeros(2), "v_pred": torch.zeros(0)}, file)
    assert spec_of(of_sgm(file=file)).prediction_type == "v_prediction"


def test_options_come_first_and_the_hosts_noise_schedule_counts_for_v_alone() -> None:
    v = ModelOptions(prediction_type="v_prediction")
    assert str(spec_of(of_ldm(), v)) == "SD 1.x, v prediction"
    assert str(spec_of(of_ldm(), v, zero_terminal_snr=True)) == "SD 1.x, v prediction, zero terminal SNR"
    assert str(spec_of(of_ldm(), zero_terminal_snr=True)) == "SD 1.x, epsilon prediction"
    with pytest.raises(ConfigError, match="found on with epsilon prediction"):
        spec_of(of_ldm(), ModelOptions(zero_terminal_snr="on"))
