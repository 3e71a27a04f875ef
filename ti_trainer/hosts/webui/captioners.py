"""The WebUI's own captioners: the BLIP of its interrogator, and DeepDanbooru. Imported only inside the WebUI.

The queue is acquired for each image, so that other images can be generated in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from modules import devices, images, paths, shared
from modules.call_queue import queue_lock
from PIL import Image

from ti_trainer.captioning.captioner import Captioner, HostCaptioner, Tags
from ti_trainer.config.preprocessing import PreprocessConfig
from ti_trainer.errors import ConfigError
from ti_trainer.hosts.webui.forks import empty_device
from ti_trainer.hosts.webui.lease import rng_kept

BLIP_FILE, DEEPBOORU_FILE = "BLIP/model_base_caption_capfilt_large.pth", "torch_deepdanbooru/model-resnet_custom_v3.pt"
BLIP_FILES = f"{BLIP_FILE} (CLIP's ViT-L-14.pt: in ~/.cache/clip)"
DEEPBOORU_PX, FILL = 512, 2  # DeepDanbooru's side, and the host's number for: the whole image, its edges continued


def offered() -> Mapping[str, HostCaptioner]:
    """The captioners of this WebUI. It loads, and downloads, their models only when they are opened."""
    found = {}
    if getattr(shared, "interrogator", None) is not None and "BLIP" in getattr(paths, "paths", ()):
        found["webui-blip"] = HostCaptioner("BLIP of the WebUI (a sentence)", _blip, partial(_has, BLIP_FILE))
    if _deepbooru() is not None:
        found["deepbooru"] = HostCaptioner("DeepDanbooru of the WebUI (tags)", _danbooru, partial(_has, DEEPBOORU_FILE))
    return found


def _has(file: str) -> bool:
    """Whether the WebUI has downloaded a model before."""
    return (Path(paths.models_path) / file).is_file()


@contextmanager
def _blip(config: PreprocessConfig) -> Iterator[Captioner]:
    """A sentence, with the length from the WebUI's settings for its interrogator."""
    interrogator = shared.interrogator

    def describe(image: Image.Image) -> str:
        with _queue_held():
            interrogator.blip_model.to(devices.device_interrogate)  # the WebUI's own button may have moved it to RAM
            return interrogator.generate_caption(image)

    try:
        with _queue_held(), _explained("BLIP or CLIP", BLIP_FILES):
            interrogator.load()
            interrogator.send_clip_to_ram()  # CLIP only ranks further parts of a prompt
        yield describe
    finally:
        with queue_lock:
            interrogator.unload()


@contextmanager
def _danbooru(config: PreprocessConfig) -> Iterator[Captioner]:
    """Tags with their scores; the WebUI's own function returns text only, made by settings of its own."""
    host = _deepbooru().model

    def describe(image: Image.Image) -> Tags:
        pixels = np.array(images.resize_image(FILL, image, DEEPBOORU_PX, DEEPBOORU_PX), np.float32) / 255
        with _queue_held(), torch.no_grad(), devices.autocast():
            host.start()
            dtype = getattr(host, "dtype", devices.dtype)  # Forge and its relatives choose one for each model
            batch = torch.from_numpy(pixels)[None].to(devices.device, dtype)  # (1, H, W, 3)
            scores = host.model(batch)[0].tolist()
        found = [(tag, score) for tag, score in zip(host.model.tags, scores, strict=True) if not tag.startswith("rating:")]
        return [(tag, score) for tag, score in found if score >= config.general_threshold]

    try:
        with _queue_held(), _explained("DeepDanbooru", DEEPBOORU_FILE):
            host.start()
        yield describe
    finally:
        with queue_lock:
            if host.model is not None:
                host.stop()


@contextmanager
def _queue_held() -> Iterator[None]:
    """Hold the queue; with --medvram the GPU is emptied first, as for the WebUI's own interrogator."""
    with queue_lock, rng_kept():
        empty_device()
        yield


@contextmanager
def _explained(name: str, file: str) -> Iterator[None]:
    """Explain errors of a model that could not be downloaded."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = (
            f"The WebUI could not load {name} ({type(error).__name__}: {reason}). It downloads the model when first used: "
            f"see that it can, or put the file there by hand: {paths.models_path}/{file}."
        )
        raise ConfigError(message, "captioners") from error


def _deepbooru() -> Any:
    try:
        from modules import deepbooru
    except ImportError:
        return None
    return deepbooru
