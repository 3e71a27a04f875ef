"""An embedding means the same in every host: the same vectors, and the same conditioning of a prompt with it.

Each host is compared with the diffusers adapter, and with the other checkouts that `--webui-other` names.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import hosts
import pytest
import torch
from export import export
from server import Server
from test_extension import our_status, started, stopped, until
from torch import Tensor

from ti_trainer import formats
from ti_trainer.embedding import Embedding
from ti_trainer.formats import embeddings_dir
from ti_trainer.hosts.diffusers.model import DiffusersModel

pytestmark = pytest.mark.webui
PROMPT = "a photo of {} beside a red house"  # the "Original" emphasis divides by a mean near 0, which magnifies rounding


def conditioning(webui: Server, name: str) -> Tensor:
    """By the host itself, (77, D)."""
    return torch.tensor(webui.api(f"/ti-check/conditioning?prompt={quote(PROMPT.format(name))}")["crossattn"])


def vectors(webui: Server, name: str) -> Tensor:
    """As the host has read them, (V, D)."""
    (found,) = webui.api(f"/ti-check/vectors?name={name}").values()
    return torch.tensor(found)


def read(webui: Server, name: str) -> Mapping[str, Tensor]:
    return embeddings_dir.load(webui.embeddings, name)[0].vectors


def check(webui: Server, model: DiffusersModel, name: str, wanted: Mapping[str, Tensor]) -> None:
    (alone,) = wanted.values()
    assert torch.equal(vectors(webui, name), alone)
    with torch.no_grad():
        ours = model.encode_prompts([PROMPT.format(name)], {name: wanted}).hidden[0]
    torch.testing.assert_close(conditioning(webui, name), ours, rtol=0, atol=1e-5)


def read_again(webui: Server) -> None:
    """Make the host read its folder of embeddings, which every change by our extension does."""
    webui.endpoint("ti_trainer_create", "my-reason-to-read-the-folder", "red star", 1, True)


def trained(webui: Server, name: str) -> None:
    started(webui, name, max_steps=10)
    until(lambda: our_status(webui)["status"] == "done")
    stopped(webui)


def test_what_is_trained_here_means_the_same_in_diffusers(webui: Server, embedded_model: DiffusersModel) -> None:
    trained(webui, "my-export")
    check(webui, embedded_model, "my-export", read(webui, "my-export"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_what_was_made_elsewhere_means_the_same_here(webui: Server, embedded_model: DiffusersModel, suffix: str) -> None:
    (
        name,
        (encoder, width),
    ) = f"my-import-{suffix[1:]}", *embedded_model.widths.items()
    made = {encoder: torch.randn(3, width, generator=torch.Generator().manual_seed(0)) * 0.1}
    formats.write(Embedding(name, made), webui.embeddings / f"{name}{suffix}")
    read_again(webui)
    check(webui, embedded_model, name, made)


def test_what_is_trained_here_means_the_same_in_other_webuis(
    webui: Server,
    other_checkouts: list[Path],
    serve: Callable[..., Any],
    tmp_path: Path,
    embedded_model: DiffusersModel,
) -> None:
    trained(webui, "my-travel")
    name = f"my-{webui.kind.name.lower()}"
    for checkout in other_checkouts:
        data = tmp_path / hosts.kind_of(checkout).name
        export(embedded_model, checkout, data / "models" / "Stable-diffusion" / "embedded.safetensors")
        with serve(data, checkout=checkout) as other:
            shutil.copyfile(webui.embeddings / "my-travel.safetensors", other.embeddings / f"{name}.safetensors")
            read_again(other)
            check(other, embedded_model, name, read(webui, "my-travel"))
