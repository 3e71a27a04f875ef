"""Networks that compute with less memory give the same numbers, or in 8 bits nearly, and are afterwards what they were."""

from __future__ import annotations

import pytest

pytest.importorskip("diffusers")  # whose networks are asked here; those of the WebUI are in webui/test_webui_families.py

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ti_trainer.hosts.diffusers.loading import load
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.hosts.diffusers.sampling import whole_image
from ti_trainer.hosts.diffusers.shapes import sd15_unet
from ti_trainer.offload import streaming
from ti_trainer.offload.checkpointing import blocks_of, largest_blocks
from ti_trainer.offload.plan import PLANS, MemoryPlan, bytes_of
from ti_trainer.offload.streaming import BlockOffloader

RAN_OUT = torch.cuda.OutOfMemoryError("CUDA out of memory")


@pytest.fixture(scope="module")
def model() -> DiffusersModel:
    return load("embedded", "cpu")


def gradients(model: DiffusersModel) -> tuple[torch.Tensor, torch.Tensor]:
    """A prediction (2, 4, 8, 8), and of its squares the gradient to two vectors."""
    generator = torch.Generator().manual_seed(0)
    vectors = (torch.randn(2, model.widths["clip_l"], generator=generator) * 0.1).requires_grad_()
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    with model.training():
        cond = model.encode_prompts(["a zz-cat", "zz-cat at night"], {"zz-cat": {"clip_l": vectors}})
        prediction = model.predict(latents, torch.tensor([500, 20]), cond, whole_image(model, 64, 64).repeat(2))
        return prediction.detach(), torch.autograd.grad(prediction.square().mean(), vectors)[0]


@contextmanager
def as_before(model: DiffusersModel) -> Iterator[None]:
    """Afterwards every weight is bitwise what it was, the same tensor, and nobody's forward is another."""
    weights = {
        (number, name): (each, each.detach().clone(), each.stride())
        for number, module in enumerate(model.modules)
        for name, each in module.named_parameters()
    }
    yield
    for number, module in enumerate(model.modules):
        for name, each in module.named_parameters():
            same, wanted, strides = weights[number, name]
            assert each is same
            assert torch.equal(each, wanted)
            assert each.stride() == strides
        assert not any("forward" in vars(each) for each in module.modules())


@pytest.mark.parametrize(
    "plan", [MemoryPlan(checkpointing=0.5), PLANS["checkpointing"], PLANS["offload-text"], PLANS["offload-all"]], ids=str
)
def test_with_less_memory_the_numbers_are_the_same(plan: MemoryPlan, model: DiffusersModel) -> None:
    wanted = gradients(model)
    with as_before(model):
        model.memory.use(plan)
        found = gradients(model)
        model.use_all_memory()
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


def test_weights_in_ram_are_away_but_while_their_block_computes(model: DiffusersModel) -> None:
    block, seen = blocks_of(model.unet)[3], []
    hook = block.conv1.register_forward_pre_hook(lambda module, _: seen.append(module.weight.numel()))
    with as_before(model):
        model.memory.use(PLANS["offload-all"])
        assert all(each.numel() == 0 for every in blocks_of(model.unet, *model.modules[2:]) for each in every.parameters())
        left = bytes_of(model.unet, *model.modules[2:])
        gradients(model)
        assert seen[0] == seen[1] > 0, "there, and computed once more on the way back"
        assert len(seen) == 2
        assert block.conv1.weight.numel() == 0
        model.use_all_memory()
    hook.remove()
    assert left == bytes_of(model.unet, *model.modules[2:]) - bytes_of(*blocks_of(model.unet, *model.modules[2:]))


def test_in_8_bits_the_numbers_are_nearly_the_same(model: DiffusersModel) -> None:
    wanted = gradients(model)
    with as_before(model):
        model.memory.use(PLANS["8bit"])
        found = gradients(model)
        model.use_all_memory()
    for one, other in zip(found, wanted, strict=True):
        assert not torch.equal(one, other)
        assert (one - other).norm() < 0.05 * other.norm()


@pytest.mark.parametrize("plan", [PLANS["offload-all"], PLANS["8bit"]], ids=str)
def test_what_fails_meanwhile_leaves_all_as_it_was(plan: MemoryPlan, model: DiffusersModel) -> None:
    def fail(*_: Any) -> None:
        raise ArithmeticError

    with as_before(model):
        hook = model.unet.mid_block.resnets[0].conv2.register_forward_hook(fail)
        offloader = BlockOffloader(model.unet, model.modules[2:], model.device)
        offloader.apply(plan)
        with pytest.raises(ArithmeticError):
            gradients(model)
        offloader.close()
        hook.remove()


def test_when_memory_runs_out_on_a_cpu_the_network_is_computed_twice_and_no_more(model: DiffusersModel) -> None:
    wanted = gradients(model)
    with as_before(model):
        assert model.reduce_memory(RuntimeError("shapes cannot be multiplied")) == ""
        assert model.reduce_memory(RAN_OUT) == (
            "Memory ran out. To save memory from here on: gradient checkpointing (steps take up to 50% longer)."
        )
        assert torch.equal(gradients(model)[1], wanted[1])
        assert model.reduce_memory(RAN_OUT) == "", "weights are in RAM already"
        model.use_all_memory()


@pytest.mark.parametrize("first", ["checkpointing", "8bit"])
def test_more_and_more_weights_go_and_none_comes_back_in_between(
    first: str, model: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    restore, came_back, plan = streaming.OffloadedBlock.restore, [], PLANS[first]
    with as_before(model):
        model.memory.use(plan)
        wanted = gradients(model)
        monkeypatch.setattr(streaming.OffloadedBlock, "restore", lambda block: came_back.append(block) or restore(block))
        while plan := plan.next(may_offload_vae=False):
            model.memory.use(plan)
            assert torch.equal(gradients(model)[1], wanted[1])
        assert not came_back, "there may be no room for it in between"
        model.use_all_memory()
    assert came_back


def test_weights_that_there_is_no_room_for_wait_in_ram_and_come_later(
    model: DiffusersModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    to = torch.Tensor.to

    def no_room(tensor: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        if given == (model.device,) and not named:
            raise RAN_OUT
        return to(tensor, *given, **named)

    with as_before(model):
        model.memory.use(PLANS["offload-all"])
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "to", no_room)
            model.memory._offloader.close()
        assert "has no room for the weights of" in caplog.text
        assert len(caplog.records) == 1
        assert all(each.numel() for each in model.unet.parameters()), "nothing is lost"
        model.use_all_memory()
        assert not model.memory._offloader._waiting


def test_a_part_of_the_blocks_keeps_that_part_of_what_all_keep() -> None:
    """By count of what SD 1.5 keeps at 512 px, with attention that keeps no scores."""
    with torch.device("meta"):
        unet = sd15_unet().half().requires_grad_(False).eval()
    unet.set_attn_processor(_KeepsNoScores())
    blocks = blocks_of(unet)
    kept = _kept(unet, blocks)
    assert sum(kept) == pytest.approx(155 * 2**10 * 64 * 64, rel=0.02)
    assert bytes_of(*blocks) > 0.9 * bytes_of(unet)
    for part in (0.1, 0.3, 0.5, 0.8):
        chosen = {id(each) for each in largest_blocks(blocks, part)}
        share = sum(size for block, size in zip(blocks, kept, strict=True) if id(block) in chosen) / sum(kept)
        assert part - 0.03 < share < part + 0.09
    assert largest_blocks(blocks, 1.0) == blocks
    assert largest_blocks(blocks, 0.0) == []


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        found = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, found)
        return found


class _KeepsNoScores:
    def __call__(
        self, attn: Any, states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None, *_: Any, **__: Any
    ) -> Any:
        context = states if encoder_hidden_states is None else encoder_hidden_states
        return attn.to_out[0](_Attention.apply(attn.to_q(states), attn.to_k(context), attn.to_v(context)))


def _kept(unet: Any, blocks: list[Any]) -> list[int]:
    """Bytes that each block keeps for its way back, besides weights; each tensor once."""
    kept, seen, at = [0] * len(blocks), [], [None]
    weights = {id(each) for each in unet.parameters()}
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, number=number: at.__setitem__(0, number))
        block.register_forward_hook(lambda *_: at.__setitem__(0, None))

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        is_weight = id(tensor) in weights or id(tensor._base) in weights
        if at[0] is not None and not is_weight and not any(tensor is each for each in seen):
            seen.append(tensor)
            kept[at[0]] += tensor.numel() * tensor.element_size()
        return tensor

    half = {"device": "meta", "dtype": torch.half}
    text = torch.empty(1, 77, 768, **half, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        unet(torch.empty(1, 4, 64, 64, **half), torch.zeros((), device="meta"), text)
    return kept
