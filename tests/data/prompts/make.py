"""Makes expected.json again: what the AUTOMATIC1111 WebUI 1.10.1 itself makes of the prompts in it.

To add one, write `["prompt", {}]` there, or {"clip_skip": 2} for another layer of CLIP.
Run in the environment of requirements-webui.txt:

    python tests/data/prompts/make.py CHECKOUT-OF-THE-WEBUI [ANOTHER-FILE]
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parent)]

import webui  # noqa: E402
from stored import EMBEDDINGS, FILE, FILL, MODEL, projected, shortened, vectors_of  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer  # noqa: E402


def expected(host: Any, prompt: str, clip_skip: int) -> dict[str, Any]:
    """What both engines make of a prompt; an error has no more to say than that it is one."""
    host.opts.CLIP_stop_at_last_layers = clip_skip
    try:
        found = {name: _shortened(fill, *webui.encode(getattr(host, name), prompt)) for name, fill in FILL.items()}
    except ValueError:
        return {"error": True}
    same = {key: each for key, each in found["open_clip"].items() if each != found["clip"][key]}
    return {**found["clip"], "open_clip": same} | ({"clip_skip": clip_skip} if clip_skip > 1 else {})


def _shortened(fill: int, ids: Any, multipliers: Any, fixes: Any, hidden: torch.Tensor) -> dict[str, Any]:
    return {
        "ids": [shortened(each, fill) for each in ids],
        "weights": [[[weight, len(list(run))] for weight, run in itertools.groupby(each)] for each in multipliers],
        "places": fixes,
        "hidden": projected(hidden.numpy()),
    }


def main(checkout: Path, file: Path = FILE) -> None:
    """Write it."""
    from safetensors.torch import load_file

    torch.set_num_threads(1)
    network = CLIPTextModel(CLIPTextConfig.from_pretrained(MODEL / "text_encoder")).eval()
    weights = load_file(MODEL / "text_encoder" / "model.safetensors")
    weights = {f"text_model.{key.removeprefix('text_model.')}": each for key, each in weights.items()}
    network.load_state_dict(weights, strict=False)
    host = webui.load(checkout, network, CLIPTokenizer.from_pretrained(MODEL / "tokenizer"))
    for name in EMBEDDINGS:
        webui.register(host, name, torch.from_numpy(vectors_of(name)))
    prompts = [(prompt, found.get("clip_skip", 1)) for prompt, found in json.loads(FILE.read_text(encoding="utf-8"))]
    lines = [json.dumps([prompt, expected(host, prompt, skip)], separators=(",", ":")) for prompt, skip in prompts]
    file.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    print(f"{len(prompts)} prompts, {file.stat().st_size} bytes")  # noqa: T201


if __name__ == "__main__":
    main(*(Path(each).resolve() for each in sys.argv[1:]))
