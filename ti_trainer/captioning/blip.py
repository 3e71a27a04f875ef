"""BLIP, which writes a sentence. Only safetensors are read, and no code that comes with a model is run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ti_trainer.captioning.captioner import Captioner, missing_package
from ti_trainer.config.preprocessing import PreprocessConfig
from ti_trainer.errors import ConfigError
from ti_trainer.files import entered_path

LABEL, PACKAGE = "BLIP (a sentence)", "transformers"
LENGTH = {"num_beams": 1, "min_length": 24, "max_length": 48}  # in tokens; the WebUI's own interrogator begins with these
WEIGHTS = "model.safetensors"
FILES = f"config.json, preprocessor_config.json, {WEIGHTS}, tokenizer_config.json, and tokenizer.json or vocab.txt"
WORDS, HEAD = "text_decoder.bert.embeddings.word_embeddings.weight", "text_decoder.cls.predictions.decoder.weight"


def load(config: PreprocessConfig, device: torch.device) -> Captioner:
    """Load the model from a folder, or download it by name at first use; ConfigError if it cannot be loaded."""
    try:
        from transformers import BlipForConditionalGeneration, BlipProcessor
    except ImportError as error:
        raise missing_package(PACKAGE, error) from error
    folder = _folder(config.blip_model)
    try:
        processor = BlipProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        network, about = BlipForConditionalGeneration.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        _complete(network, set(about["missing_keys"]))
    except Exception as error:  # a damaged file can raise anything
        found = f"The BLIP model in {folder} cannot be read ({_first_line(error)})."
        raise _refused(found) from error
    network = network.eval().to(device, torch.float16 if device.type == "cuda" else torch.float32)

    @torch.inference_mode()
    def describe(image: Image.Image) -> str:
        pixels = processor(images=image, return_tensors="pt").pixel_values.to(device, network.dtype)  # (1, 3, H, W)
        tokens = network.generate(pixel_values=pixels, do_sample=False, **LENGTH)
        return processor.decode(tokens[0], skip_special_tokens=True).strip()

    return describe


def is_installed(config: PreprocessConfig) -> bool:
    """Whether the model is in a folder, or was downloaded before, and transformers is installed."""
    if importlib.util.find_spec(PACKAGE) is None:
        return False
    folder = entered_path(config.blip_model)
    if folder != Path() and folder.is_dir():
        return (folder / WEIGHTS).is_file()
    from huggingface_hub import try_to_load_from_cache

    try:
        return isinstance(try_to_load_from_cache(config.blip_model, WEIGHTS), str)
    except ValueError:  # not the name of a model
        return False


def _folder(source: str) -> Path:
    """The folder of the model's files. Only files that are read are downloaded."""
    folder = entered_path(source)
    if folder == Path() or not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(source, allow_patterns=["*.json", "*.txt", WEIGHTS]))
        except Exception as error:  # of the hub, the network or the disk
            found = f"There is no folder {source!r}, and no model of that name could be downloaded ({_first_line(error)})."
            raise _refused(found) from error
    if not (folder / WEIGHTS).is_file():  # transformers 4.30 would unpickle another file then, despite use_safetensors
        found = f"The BLIP model in {folder} has no {WEIGHTS}. Other formats are not read, because they can contain code."
        raise _refused(found)
    return folder


def _complete(network: Any, absent: set[str]) -> None:
    """Tie input and output embeddings: if a file has only one of them, transformers 4.30 leaves the other random."""
    for name, other in ((WORDS, HEAD), (HEAD, WORDS)):
        if name in absent and other not in absent:
            network.get_parameter(name).data.copy_(network.get_parameter(other).data)
            absent = absent - {name}
    lost = sorted(name for name in absent if not name.endswith(("position_ids", "predictions.bias", "decoder.bias")))
    if lost:
        message = f"{len(lost)} weights are missing, for example {lost[0]}"
        raise ValueError(message)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _refused(found: str) -> ConfigError:
    message = f"{found} Choose a folder with these files: {FILES}."
    return ConfigError(message, "blip_model")
