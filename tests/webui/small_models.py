"""Teach the loaders of Forge and reForge the shapes of small checkpoints. For use inside the host, before it loads a model.

Both build their networks from configurations of the published models, which they choose by the shapes of the weights. With a
few more configurations to choose from, the host's own code loads, samples and trains our small models. A1111 needs none of
this: it reads the .yaml beside a checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

FILE = "small_models.json"  # in the data folder: a list of {"like", "unet_config", "unet_extra_config", "folder"}
TEXT_ENCODERS = {"clip_l": "text_encoder", "clip_h": "text_encoder", "clip_g": "text_encoder_2"}


def teach(data: Path) -> None:
    """Add the models that are listed in the data folder, if there are any and the host needs to be taught."""
    file = data / FILE
    shapes = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    try:
        from huggingface_guess import model_list
    except ImportError:
        pass
    else:
        _teach_forge(model_list, shapes)
        return
    try:
        from ldm_patched.modules import supported_models
    except ImportError:
        return
    _teach_reforge(supported_models, shapes)


def _small(models: Any, shape: dict[str, Any], **more: Any) -> type:
    like = getattr(models, shape["like"])
    extra = {**like.unet_extra_config, **shape["unet_extra_config"]}
    return type("Small", (like,), {"unet_config": shape["unet_config"], "unet_extra_config": extra, **more})


def _teach_forge(model_list: Any, shapes: list[dict[str, Any]]) -> None:
    from modules import sd_models

    from ti_trainer.hosts.forge.engine import EngineView

    EngineView.image_size = 8  # latent pixels: Forge knows no checkpoint's own size, so ours is that of the published models
    small = [_small(model_list, shape, huggingface_repo=shape["folder"]) for shape in shapes]
    model_list.models[:0] = small
    load = sd_models.forge_loader

    def load_and_expect_narrow_embeddings(*args: Any, **kwargs: Any) -> Any:
        engine = load(*args, **kwargs)
        if isinstance(engine.model_config, tuple(small)):
            for text in (each for name, each in vars(engine).items() if name.startswith("text_processing_engine")):
                text.embeddings.expected_shape = engine.model_config.unet_config["context_dim"]
                text.embeddings.load_textual_inversion_embeddings()
        return engine

    sd_models.forge_loader = load_and_expect_narrow_embeddings


def _teach_reforge(supported_models: Any, shapes: list[dict[str, Any]]) -> None:
    from ldm_patched.modules import sd, sd1_clip

    def clip_target(self: Any, *state_dict: Any) -> Any:  # Forge Classic passes none
        found = super(type(self), self).clip_target(*state_dict)
        build = found.clip

        def build_small(**kwargs: Any) -> Any:
            with _text_encoder_shapes(sd1_clip.SDClipModel, Path(self.folder)):
                return build(**kwargs)

        found.clip = build_small
        return found

    small = [_small(supported_models, shape, folder=shape["folder"], clip_target=clip_target) for shape in shapes]
    supported_models.models[:0] = small
    init = sd.VAE.__init__

    def init_vae(self: Any, sd: Any = None, config: Any = None, **kwargs: Any) -> None:
        init(self, sd=sd, config=config or _vae_config(sd), **kwargs)

    sd.VAE.__init__ = init_vae


@contextmanager
def _text_encoder_shapes(kind: Any, folder: Path) -> Iterator[None]:
    """Within it text encoders are built in the shapes of a folder in diffusers' layout."""
    init = kind.__init__
    takes_options = "model_options" in signature(init).parameters  # not in Forge Classic, where only SD 1.x is taught

    def init_small(
        self: Any, *args: Any, textmodel_json_config: Any = None, model_options: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        name = (model_options or {}).get("model_name", "clip_l")
        file = folder / TEXT_ENCODERS[name] / "config.json"
        if not takes_options:
            init(self, *args, textmodel_json_config=str(file), **kwargs)
            return
        config = json.loads(file.read_text(encoding="utf-8"))
        config["num_hidden_layers"] += name == "clip_h"  # OpenCLIP's last layer, which is not used
        init(
            self, *args, textmodel_json_config=config, model_options={**(model_options or {}), "model_name": name}, **kwargs
        )

    kind.__init__ = init_small
    try:
        yield
    finally:
        kind.__init__ = init


def _vae_config(weights: dict[str, Any] | None) -> dict[str, Any] | None:
    """The host's configuration of an autoencoder, by the shapes of its weights in the original code's layout."""
    if not weights or "encoder.conv_in.weight" not in weights:
        return None
    width = weights["encoder.conv_in.weight"].shape[0]
    levels = sorted({int(key.split(".")[2]) for key in weights if key.startswith("encoder.down.")})
    blocks = {key.split(".")[4] for key in weights if key.startswith("encoder.down.0.block.")}
    widths = [weights[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in levels]
    sizes = {"z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": width, "num_res_blocks": len(blocks)}
    more = {"double_z": True, "ch_mult": [each // width for each in widths], "attn_resolutions": [], "dropout": 0.0}
    return {"params": {"ddconfig": {**sizes, **more}, "embed_dim": 4}}
