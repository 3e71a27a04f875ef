"""How a step fits into a GPU's memory, and that what gives way changes no number."""

from __future__ import annotations

from typing import Any

import families
import pytest
import torch

from ti_trainer.hosts.diffusers.attention import Float32Attention, needs_fp32_attention
from ti_trainer.hosts.diffusers.host import StandaloneHost
from ti_trainer.hosts.diffusers.loading import load
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.hosts.diffusers.sampling import whole_image
from ti_trainer.offload.plan import MemoryPlan

SDXL_1024 = 128 * 128


def gradients(model: DiffusersModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    vectors = {
        name: (torch.randn(2, width, generator=generator) * 0.1).requires_grad_() for name, width in model.widths.items()
    }
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    with model.training():
        cond = model.encode_prompts(["a zz-cat"], {"zz-cat": vectors})
        prediction = model.predict(latents, torch.tensor([500]), cond, whole_image(model, 64, 64))
        prediction.float().square().mean().backward()
    return prediction.detach(), {name: each.grad for name, each in vectors.items()}


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_computing_again_what_was_not_kept_changes_nothing(family: str, tmp_path: Any) -> None:
    model = load(str(families.save(family, tmp_path / "model")), "cpu")
    wanted, wanted_gradients = gradients(model)
    again: list[int] = []
    model.fit_memory(64, mode="checkpointing")
    block = model.unet.mid_block.resnets[-1]
    hook = block.conv1.register_forward_pre_hook(lambda *_: again.append(1))
    found, found_gradients = gradients(model)
    hook.remove()
    assert len(again) == 2
    assert torch.equal(found, wanted)
    for name, each in found_gradients.items():
        torch.testing.assert_close(each, wanted_gradients[name], rtol=0, atol=1e-7)
    assert model.fit_memory(SDXL_1024) == ""  # on a CPU there is nothing to choose


def test_attention_in_float32_is_the_librarys_where_that_can_be_computed(tmp_path: Any) -> None:
    model = load(str(families.save("sd2", tmp_path / "model")), "cpu")
    assert needs_fp32_attention(model.unet)
    wanted, _ = gradients(model)
    model.unet.set_attn_processor(Float32Attention())
    found, _ = gradients(model)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_attention_in_float32_is_finite_where_half_precision_is_not(tmp_path: Any) -> None:
    """Scores of SD 2.x go beyond what fp16 holds: that was the cause of `loss: nan`."""
    model = load(str(families.save("sd2", tmp_path / "model")), "cpu")
    layer = model.unet.mid_block.attentions[0].transformer_blocks[0].attn1.half()
    x = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(0)).half()
    with torch.no_grad():
        layer.to_q.weight *= 300
        layer.to_k.weight *= 300
        scores = layer.to_q(x) @ layer.to_k(x).transpose(1, 2)
        assert not scores.isfinite().all()
        found = Float32Attention()(layer, x)
        wanted = Float32Attention()(layer.float(), x.float())
    assert found.isfinite().all()
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=1e-2)


def test_only_sd_2_needs_it() -> None:
    for family, needed in (("sd1", False), ("sd2", True), ("sdxl", False)):
        assert needs_fp32_attention(families.shared(family).unet) == needed


def test_memory_settings_are_restored_after_the_lease(embedded_model: DiffusersModel) -> None:
    host = StandaloneHost(device="cpu")
    model = host.open_model()
    with host.lock():
        model.fit_memory(64, mode="checkpointing")
        assert any("forward" in vars(each) for each in model.unet.modules())
    assert not any("forward" in vars(each) for each in model.unet.modules())
    assert not any(getattr(each, "gradient_checkpointing", False) for each in model.vae.modules())
    assert model.memory.plan == MemoryPlan()


def test_text_encoders_in_half_precision_give_nearly_the_same_gradient() -> None:
    """As on CUDA; what is learned so is no worse: docs/LOG.md."""
    model = load("embedded", "cpu")
    _, wanted = gradients(model)
    (text,) = model.text_encoders
    exact = text.table.weight.clone()
    text.compute_in(torch.bfloat16)
    assert {each.dtype for each in model.encode_prompts(["a cat"], {}).hidden[None]} == {torch.bfloat16}
    assert torch.equal(text.table.weight, exact)
    _, found = gradients(model)
    for name, each in found.items():
        assert each.dtype == torch.float32
        assert (each - wanted[name]).norm() < 0.1 * wanted[name].norm()
