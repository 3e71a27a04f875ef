"""Stand-ins for the modules of a running Forge, as far as ForgeHost uses them: a checkpoint is loaded late."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from forge_networks import CPU, Database, Emphasis, NeoEmphasis, NeoTextEngine, Patcher, TextEngine, checkpoint, make_engine
from PIL import Image

OURS = [f"ti_trainer.hosts.{name}" for name in ("forge.host", "forge.sampling")]
OURS += [f"ti_trainer.hosts.webui.{name}" for name in ("captioners", "cards", "generation", "lease", "settings")]


class CardsDatabase(Database):
    def load_textual_inversion_embeddings(self, force_reload: bool = False, sync_with_sd_model: bool = True) -> None:
        assert force_reload
        assert not sync_with_sd_model
        super().load_textual_inversion_embeddings()


class ErsatzCardsDatabase(Database):
    def load_textual_inversion_embeddings(self, find_only: bool = False) -> None:
        assert find_only
        super().load_textual_inversion_embeddings()


class MemoryManagement(ModuleType):
    def __init__(self) -> None:
        super().__init__("backend.memory_management")
        self.current_loaded_models: list[Any] = []

    def load_models_gpu(self, patchers: Sequence[Patcher]) -> None:
        for patcher in patchers:
            if not any(each.model is patcher for each in self.current_loaded_models):
                self.unload_model_clones(patcher)
                patcher.refresh_loras()
                self.current_loaded_models.append(SimpleNamespace(model=patcher, model_unload=patcher.unload))

    def unload_model_clones(self, patcher: Patcher) -> None:
        self.current_loaded_models = [each for each in self.current_loaded_models if each.model.model is not patcher.model]

    def unload_all_models(self) -> None:
        """Of another device than this: a text encoder may be on the CPU."""


class Host:
    """The modules of a running Forge as far as ForgeHost uses them; `install` puts them where `import` finds them."""

    def __init__(self, folder: Path, *, ersatz: bool = False, text_engine: type[TextEngine] = TextEngine) -> None:
        self.ersatz, self.text_engine, self.folder = ersatz, text_engine, folder
        self.loads, self.kind, self.processed = 0, "SD 1.x", []
        self.memory = MemoryManagement()
        self.data = SimpleNamespace(
            sd_model=SimpleNamespace(cond_stage_model=None), forge_hash="", forge_loading_parameters={}
        )
        self.choose("tiny")

    def choose(self, name: str) -> None:
        """As when a checkpoint is chosen at the top of the page."""
        self.data.forge_loading_parameters = {"checkpoint_info": checkpoint(name)}

    def reload(self) -> tuple[Any, bool]:
        """forge_model_reload."""
        text = str(self.data.forge_loading_parameters)
        wanted = hash(text) if self.ersatz else text
        if self.data.forge_hash == wanted:
            return self.data.sd_model, False
        info = self.data.forge_loading_parameters["checkpoint_info"]
        self.data.sd_model = None
        if info.model_name == "damaged":
            message = "Failed to recognize model type!"
            raise ValueError(message)
        self.loads += 1
        self.data.sd_model = make_engine(self.kind, self.folder, text_engine=self.text_engine)
        self.data.sd_model.sd_checkpoint_info = info
        self.data.forge_hash = wanted
        return self.data.sd_model, True

    def process(self, p: Any) -> Any:
        """process_images: of which what matters here is what it changes, and what it can see."""
        engine, _ = self.reload()
        self.memory.load_models_gpu([engine.forge_objects.clip.patcher, engine.forge_objects.unet])
        with torch.inference_mode():
            for each in (engine.forge_objects.unet.model, engine.forge_objects.clip.cond_stage_model):
                each.double().float()  # a move to a GPU leaves the weights as this does
        text_engines = [getattr(engine, name) for name in vars(engine) if name.startswith("text_processing_engine")]
        known = [sorted(each.embeddings.word_embeddings) for each in text_engines]
        self.processed.append((engine, p.prompt, known, engine.forge_objects.unet.model.predictor.prediction_type))
        return SimpleNamespace(images=[Image.new("RGB", (8, 8))])

    def install(self, monkeypatch: Any) -> None:
        class Processing:
            cached_c: Any = None
            cached_uc: Any = None

            def __init__(self, **fields: Any) -> None:
                vars(self).update(fields)

        state = SimpleNamespace(begin=lambda job: None, end=lambda: None)
        names = "job_timestamp textinfo current_latent sampling_step sampling_steps current_image_sampling_step job job_no"
        vars(state).update(dict.fromkeys(names.split()), job_count=0, processing_has_refined_job_count=False)
        vars(state).update(interrupted=False, skipped=False, stopping_generation=False)
        opts = SimpleNamespace(emphasis="Original", data={}, data_labels={}, CLIP_stop_at_last_layers=1)
        cards = (ErsatzCardsDatabase if self.ersatz else CardsDatabase)(None, self.folder)
        emphasis = NeoEmphasis if self.text_engine is NeoTextEngine else Emphasis
        nothing = SimpleNamespace(name="Euler")
        self.opts = opts
        for name, fields in {
            "backend.attention": {"get_attn_precision": lambda precision: None},
            "backend.stream": {"mover_stream": "a stream"},
            "backend.text_processing": {"__path__": []},
            "backend.text_processing.emphasis": {"get_current_option": lambda name: emphasis},
            "backend.text_processing.classic_engine": {},
            "modules.call_queue": {"queue_lock": Lock()},
            "modules.devices": {"device": CPU, "autocast": nullcontext},
            "modules.images": {},
            "modules.paths": {"models_path": "/nowhere", "data_path": "/nowhere", "paths": {}},
            "modules.processing": {"StableDiffusionProcessingTxt2Img": Processing, "process_images": self.process},
            "modules.progress": {
                "pending_tasks": {},
                **dict.fromkeys(("add_task_to_queue", "start_task", "finish_task"), lambda task: None),
            },
            "modules.sd_models": {"model_data": self.data, "forge_model_reload": self.reload, "CheckpointInfo": object},
            "modules.sd_samplers": {"visible_samplers": lambda: [nothing], "visible_sampler_names": lambda: ["Euler"]},
            "modules.shared": {
                "opts": opts,
                "state": state,
                "cmd_opts": SimpleNamespace(no_prompt_history=False, embeddings_dir=self.folder),
                "total_tqdm": SimpleNamespace(clear=lambda: None),
                "interrogator": None,
            },
            "modules.lowvram": {"send_everything_to_cpu": lambda: None},
            "modules.ui_extra_networks": {"extra_pages": []},
            "modules.ui_extra_networks_textual_inversion": {"embedding_db": cards},
        }.items():
            self._module(monkeypatch, name, fields)
        monkeypatch.setitem(sys.modules, "backend.memory_management", self.memory)
        monkeypatch.setattr(sys.modules["backend"], "memory_management", self.memory, raising=False)

    def _module(self, monkeypatch: Any, name: str, fields: dict[str, Any]) -> None:
        package, _, last = name.rpartition(".")
        if package and package not in sys.modules:
            self._module(monkeypatch, package, {"__path__": []})
        module = ModuleType(name)
        vars(module).update(fields)
        monkeypatch.setitem(sys.modules, name, module)
        if package:
            monkeypatch.setattr(sys.modules[package], last, module, raising=False)


def forget_ours() -> None:
    """Modules of ours that have imported those of a host are imported again the next time."""
    for name in OURS:
        sys.modules.pop(name, None)
        package, _, last = name.rpartition(".")
        vars(sys.modules.get(package, SimpleNamespace())).pop(last, None)
