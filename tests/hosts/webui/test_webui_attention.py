"""Attention matching in the WebUI's modules, with offloaded weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_webui_model import batch, state

from ti_trainer.offload.plan import MemoryPlan
from ti_trainer.training.attention_matching import AttentionMatching
from ti_trainer.training.teacher import Teacher

PROMPT = "red cat on sand"


@pytest.mark.parametrize("sd_model", ["SD 1.x", "SDXL"], indirect=True)
def test_vectors_are_fitted_to_the_text_and_the_pooled_state(webui_model: Callable[..., Any], sd_model: Any) -> None:
    model, teacher = webui_model(), Teacher("zz-cat", PROMPT)
    before = state(sd_model)
    model.memory.plan = MemoryPlan(checkpointing=1, offload="all")
    with model.training():
        matching = AttentionMatching.of(model, teacher, [batch()], seed=0)
        assert matching is not None
        exact = {"zz-cat": {encoder: each.clone() for encoder, each in model.token_embeddings(PROMPT).items()}}
        zeros = {encoder: torch.zeros_like(each[:2]).requires_grad_() for encoder, each in exact["zz-cat"].items()}
        for prompt, goal in matching.goals.items():
            assert (goal.pooled is None) == (model.spec.family != "SDXL")
            with torch.no_grad():
                assert goal.loss(matching.layers, model.encode_prompts([prompt], exact)) < 1e-4
                assert goal.loss(matching.layers, model.encode_prompts([prompt], {"zz-cat": zeros})) > 1e-2
        matching.fit(model, {"zz-cat": zeros}, 2, 0.01)
        assert all(each.abs().min() > 0 for each in zeros.values())
    assert state(sd_model) == before
