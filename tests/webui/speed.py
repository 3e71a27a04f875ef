"""Seconds per training step in the real WebUI, its own Train tab's and ours, in the full shape of SD 1.5. Prints JSON.

python tests/webui/speed.py --webui DIR --webui-python PY --work DIR --run host --run ours

The weights are random, which costs the same time, and are made once, as `sd15-random.safetensors` in --work (2 GB).
Every run gets a server and a data folder of its own; previews, copies and evaluations are off.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import export
import server
import torch

from ti_trainer import formats
from ti_trainer.embedding import Embedding
from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.hosts.diffusers import shapes
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.tiny_model.making import scenes

WORD = "speed-concept"
NEVER = 1_000_000  # with 0 for both of its intervals the WebUI's training fails


def random_model() -> DiffusersModel:
    """Stable Diffusion 1.5 but for its weights."""
    model = shapes.random_model("sd15", "cpu", "fp32")
    (encoder,) = model.text_encoders
    last = next(module for name, module in encoder.module.named_modules() if name.endswith("final_layer_norm"))
    torch.manual_seed(0)
    torch.nn.init.normal_(last.bias, 0.1, 0.1)  # the WebUI divides by the mean of what leaves it, which must not be 0
    return model


def host_training(webui: server.Server, images: Path, size_px: int, steps: int) -> None:
    """The Train tab's training by its API; returns at its end."""
    previews = {f"preview_{each}": "" for each in ("prompt", "negative_prompt", "sampler_name")}
    numbers = {f"preview_{each}": 1 for each in ("steps", "cfg_scale", "seed", "width", "height")}
    request = {
        "id_task": "task(speed)",
        "embedding_name": WORD,
        "learn_rate": "0.005",
        "batch_size": 1,
        "gradient_step": 1,
        "data_root": str(images),
        "log_directory": str(webui.data / "textual_inversion"),
        "training_width": size_px,
        "training_height": size_px,
        "varsize": False,
        "steps": steps,
        "clip_grad_mode": "disabled",
        "clip_grad_value": "0.1",
        "shuffle_tags": False,
        "tag_drop_out": 0,
        "latent_sampling_method": "once",
        "use_weight": False,
        "create_image_every": NEVER,
        "save_embedding_every": NEVER,
        "template_filename": "subject_filewords.txt",
        "save_image_with_stored_embedding": False,
        "preview_from_txt2img": False,
        **previews,
        **numbers,
    }
    answer = webui.api("/sdapi/v1/train/embedding", request, timeout_s=3600)["info"]
    if not answer.endswith("error: None"):
        raise RuntimeError(f"{answer}\n{webui.tail()}")


def host_step(webui: server.Server) -> int:
    state = webui.api("/sdapi/v1/progress?skip_current_image=true")["state"]
    return int(state["job_no"]) if state["job"] == "train-embedding" else 0


def our_training(webui: server.Server, images: Path, size_px: int, steps: int) -> None:
    """Ours by its endpoint; returns at once."""
    options = {
        "max_steps": steps,
        "width": size_px,
        "height": size_px,
        "template": "subject_filewords",
        **{f"{each}_every": 0 for each in ("preview", "save", "evaluate")},
    }
    webui.endpoint("ti_trainer_train", WORD, str(images), json.dumps(options))


def our_step(webui: server.Server) -> int:
    status = webui.endpoint("ti_trainer_status")[0]
    if status["status"] == "failed":
        raise RuntimeError(status["message"])
    return int(status["step"])


RUNS: dict[str, tuple[Callable[..., None], Callable[[server.Server], int]]] = {
    "host": (host_training, host_step),
    "ours": (our_training, our_step),
}


def measure(webui: server.Server, run: str, images: Path, size_px: int, steps: int) -> list[float]:
    """Seconds of every step but the first, as its own progress counts them."""
    start, step_now = RUNS[run]
    failures: list[BaseException] = []

    def starting() -> None:
        try:
            start(webui, images, size_px, steps)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=starting)
    thread.start()
    reached: dict[int, float] = {}
    while len(reached) < steps and not failures:
        step = step_now(webui)
        if step > 0:
            reached.setdefault(step, time.monotonic())
        if step >= steps or (run == "host" and not thread.is_alive()):
            break
        time.sleep(0.1)
    thread.join()
    if failures:
        raise failures[0]
    _wait_until_written(webui, run, steps)
    known = sorted(reached)
    return [(reached[b] - reached[a]) / (b - a) for a, b in itertools.pairwise(known)]


def _wait_until_written(webui: server.Server, run: str, steps: int) -> None:
    """Both write the embedding where it was; a run that ended early or in numbers that are none measures nothing."""
    path, end = webui.embeddings / f"{WORD}.pt", time.monotonic() + 30
    try:
        while (step := formats.read(path).step) != steps:
            if time.monotonic() > end:
                raise RuntimeError(f"{run}: trained for {step} steps, not for {steps}.\n{webui.tail()}")
            time.sleep(0.5)
    except EmbeddingFormatError as error:
        raise RuntimeError(f"{run}: {error}\n{webui.tail()}") from error


def prepared(data: Path, size_px: int, checkout: Path, python: Path) -> Path:
    """Everything for one run in its data folder: our extension, an embedding that both can train, images."""
    server.install_extension(data, checkout, python)
    (data / "embeddings").mkdir()
    vectors = torch.randn(2, 768, generator=torch.Generator().manual_seed(0)) * 0.02
    formats.write(Embedding(WORD, {"clip_l": vectors}), data / "embeddings" / f"{WORD}.pt")
    images = data / "images"
    scenes.write_images(images, scenes.concept(scenes.CONCEPTS[0], 8, seed=0), size_px)
    return images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--webui", type=Path, required=True, help="a checkout of the WebUI, with its repositories/")
    parser.add_argument("--webui-python", type=Path, help="its Python; DIR/venv/bin/python by default")
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoint, which is kept")
    parser.add_argument("--run", action="append", choices=list(RUNS), required=True, help="may be given several times")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    checkout, python = given.webui.resolve(), given.webui_python or given.webui / "venv" / "bin" / "python"
    checkpoint = given.work.resolve() / "sd15-random.safetensors"
    if not checkpoint.with_suffix(".yaml").is_file():
        export.export(random_model(), checkout, checkpoint, torch.float16)
    options = [f"--ckpt-dir={checkpoint.parent}", "--disable-nan-check"]
    results: list[dict[str, Any]] = []
    for run in given.run:
        with tempfile.TemporaryDirectory() as folder:
            images = prepared(Path(folder), given.size, checkout, python.absolute())
            with server.running(checkout, python.absolute(), Path(folder), options, threads=given.threads) as webui:
                seconds = measure(webui, run, images, given.size, given.steps)
        results.append(
            {
                "run": run,
                "threads": given.threads,
                "size_px": given.size,
                "seconds_per_step": statistics.median(seconds),
                "each": [round(each, 3) for each in seconds],
            }
        )
    sys.stdout.write(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
