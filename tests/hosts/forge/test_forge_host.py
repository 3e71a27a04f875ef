"""ForgeHost in a stand-in of Forge: its numbers, what it changes in the host, and what it refuses."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forge_networks import NeoTextEngine, Patcher
from torch import Tensor

from ti_trainer.data.dataset import Batch
from ti_trainer.errors import ConfigError, ModelError, TrainingError
from ti_trainer.host import GenerationRequest, ModelOptions, ModelReference
from ti_trainer.model import ImageConditioning
from ti_trainer.training.step import training_loss
from ti_trainer.workbench.inspect import nearest_tokens, normalized

WORD = "zz-cat"
VARIANTS = pytest.mark.parametrize(
    "forge",
    [{}, {"ersatz": True}, {"text_engine": NeoTextEngine}],
    indirect=True,
    ids=["Forge", "ersatzForge", "Neo"],
)


def vectors_of(model: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {key: torch.randn(2, width, generator=generator) * 0.1 for key, width in model.widths.items()}


def batch_of(model: Any) -> Batch:
    generator = torch.Generator().manual_seed(5)
    latents, noise = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    sizes = torch.tensor([[640, 480, 3, 20, 512, 448], [1024, 1024, 0, 0, 1024, 1024]]).float()
    masked = torch.randn(2, 5, 8, 8, generator=generator) if model.spec.inpainting else None
    prompts = (f"a photo of {WORD}", f"a |red++| {WORD}")
    return Batch(latents, noise, torch.tensor([10, 900]), prompts, None, ImageConditioning(sizes, masked))


def gradients(model: Any) -> dict[str, Tensor]:
    vectors = {key: each.requires_grad_() for key, each in vectors_of(model).items()}
    training_loss(model, batch_of(model), {WORD: vectors}).mean().backward()
    return {key: each.grad for key, each in vectors.items()}


def inference_tensors(engine: Any) -> int:
    objects = engine.forge_objects_original
    networks = (objects.unet.model, objects.clip.cond_stage_model, objects.vae.first_stage_model)
    return sum(each.is_inference() for network in networks for each in network.state_dict(keep_vars=True).values())


def register(engine: Any, vectors: dict[str, Tensor]) -> None:
    """As Forge does from a file."""
    first = next(iter(vectors.values()))
    embedding = SimpleNamespace(name=WORD, vec=vectors if len(vectors) > 1 else first, vectors=len(first))
    for name in [each for each in vars(engine) if each.startswith("text_processing_engine")]:
        database = getattr(engine, name).embeddings
        ids = getattr(engine, name).tokenize([WORD])[0]
        database.word_embeddings[WORD] = embedding
        database.ids_lookup[ids[0]] = [(ids, embedding)]


@VARIANTS
@pytest.mark.parametrize("kind", ["SD 1.x", "SDXL"])
@pytest.mark.parametrize("clip_skip", [1, 3])
def test_conditioning_is_forges_own(forge: Any, ours: Any, kind: str, clip_skip: int) -> None:
    forge.kind = kind
    with ours.lock():
        model = ours.open_model(ModelOptions(clip_skip=clip_skip))
        vectors, prompt = vectors_of(model), f"a |red++| {WORD} on grass"
        with torch.no_grad():
            cond = model.encode_prompts([prompt], {WORD: vectors})
        cat = model.tokenize("cat", {}).chunks[0][1]
        for name, table in model.token_tables().items():  # of inference tensors
            unit, _ = normalized(model.token_embeddings("cat")[name].numpy())
            assert nearest_tokens(table, unit, 1)[0].tolist() == [[cat]]
    engine = forge.data.sd_model
    register(engine, vectors)
    engines = [getattr(engine, name) for name in vars(engine) if name.startswith("text_processing_engine")]
    for each in engines:
        each.clip_skip = clip_skip
    with torch.inference_mode():
        hosts = [each(prompt) for each in engines]
    hidden = torch.cat([each[0] if isinstance(each, tuple) else each for each in hosts], 2)
    assert (cond.hidden - hidden).abs().max() < 1e-6
    assert (cond.pooled is None) == (kind == "SD 1.x")
    if cond.pooled is not None:
        assert (cond.pooled - hosts[1][1]).abs().max() < 1e-6


@VARIANTS
@pytest.mark.parametrize("kind", ["SD 1.x", "SDXL"])
def test_the_gradient_is_that_of_finite_differences_in_every_memory_mode(forge: Any, ours: Any, kind: str) -> None:
    forge.kind = kind
    with ours.lock():
        model = ours.open_model()
        vectors = vectors_of(model)
        direction = {
            key: torch.randn(each.shape, generator=torch.Generator().manual_seed(9)) for key, each in vectors.items()
        }

        def loss(step: float) -> Tensor:
            moved = {key: each + step * direction[key] for key, each in vectors.items()}
            return training_loss(model, batch_of(model), {WORD: moved}).mean()

        found = {}
        for mode in ("none", "checkpointing", "offload-text", "offload-all", "offload-vae"):
            model.fit_memory(128, mode=mode)
            with model.training():
                found[mode] = gradients(model)
        with model.training(), torch.no_grad():
            measured = (loss(1e-2) - loss(-1e-2)) / 2e-2
    along = sum((each * direction[key]).sum() for key, each in found["none"].items())
    assert float(along) == pytest.approx(float(measured), rel=0.01)
    assert all(torch.equal(each[key], found["none"][key]) for each in found.values() for key in each)


def test_training_leaves_the_networks_as_they_were(forge: Any, ours: Any) -> None:
    with ours.lock():
        model = ours.open_model()
        modules = list(model.sd_model.model.modules()) + list(model.sd_model.cond_stage_model.modules())
        modules += model.sd_model.first_stage_model.modules()
        assert inference_tensors(forge.data.sd_model)
        model.encode_prompts(["a"], {})  # transformers notes something in its modules
        before = [sorted(vars(each)) for each in modules], [each.training for each in modules], forge_stream()
        weights = {name: each.clone() for name, each in model.sd_model.state_dict().items()}
        with suppress(KeyboardInterrupt), model.training():
            assert forge_stream() is None
            assert all(each.abs().sum() > 0 for each in gradients(model).values())
            raise KeyboardInterrupt
        after = [sorted(vars(each)) for each in modules], [each.training for each in modules], forge_stream()
    for found, wanted in zip(after, before, strict=True):
        assert found == wanted
    assert all(each.grad is None for each in model.sd_model.parameters())
    assert all(torch.equal(each, weights[name]) for name, each in model.sd_model.state_dict().items())
    assert inference_tensors(forge.data.sd_model) == 0


def forge_stream() -> Any:
    return sys.modules["backend.stream"].mover_stream


def test_a_lora_of_the_last_image_is_not_trained_on_and_stays_usable(forge: Any, ours: Any) -> None:
    with ours.lock():
        model = ours.open_model()
        with model.training():
            wanted = gradients(model)
        unet = forge.data.sd_model.forge_objects_original.unet
        with_lora = Patcher(unet.model, lora=0.5)
        forge.memory.load_models_gpu([with_lora])
        with model.training():
            found = gradients(model)
            assert forge.memory.current_loaded_models == []
        forge.memory.load_models_gpu([with_lora])
    assert all(torch.allclose(found[key], wanted[key]) for key in wanted)
    assert unet.model.merged == 0.5


@pytest.mark.parametrize("kind", ["SD 1.x", "SDXL"])
def test_previews_know_the_word_and_training_continues(forge: Any, ours: Any, kind: str) -> None:
    forge.kind = kind
    with ours.lock():
        model = ours.open_model(ModelOptions(prediction_type="v_prediction"))
        engine = forge.data.sd_model
        with model.training():
            wanted = gradients(model)
            forge.choose("another")
            chosen = forge.data.forge_loading_parameters
            image = ours.generate(model, GenerationRequest(f"a {WORD}", steps=1), {WORD: vectors_of(model)})
            assert image.size == (8, 8)
            found = gradients(model)
    used, prompt, known, prediction_type = forge.processed[-1]
    assert used is engine
    assert prompt == f"a {WORD}"
    assert known == [[WORD]] * (2 if kind == "SDXL" else 1)
    assert prediction_type == "v_prediction"
    assert engine.forge_objects.unet.model.predictor.prediction_type == "epsilon"
    assert forge.data.forge_loading_parameters is chosen, "the user's choice is loaded afterwards"
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert not any(text.stage.hijack.embedding_db.word_embeddings for text in model.texts)


def test_a_failed_preview_leaves_nothing(forge: Any, ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with ours.lock():
        model = ours.open_model()
        predictor = forge.data.sd_model.forge_objects.unet.model.predictor
        sigmas = predictor.sigmas.clone()

        def fail(p: Any) -> None:
            predictor.sigmas, predictor.log_sigmas = predictor.sigmas * 2, predictor.log_sigmas * 2
            forge.choose("another")
            raise RuntimeError("out of luck")

        monkeypatch.setattr("ti_trainer.hosts.webui.generation.process_images", fail)
        with pytest.raises(TrainingError, match="out of luck"):
            ours.generate(model, GenerationRequest("x"), {WORD: vectors_of(model)})
    assert torch.equal(predictor.sigmas, sigmas)
    assert forge.data.forge_loading_parameters["checkpoint_info"].model_name == "another"
    assert not any(text.stage.hijack.embedding_db.word_embeddings for text in model.texts)


@VARIANTS
def test_describing_loads_nothing_and_opening_loads_once(forge: Any, ours: Any) -> None:
    assert ours.describe() == "tiny, not loaded yet"
    assert forge.loads == 0
    model = ours.open_model()
    with ours.lock():
        ours.open_model()
    assert forge.loads == 1
    assert ours.describe() == "tiny (SD 1.x, epsilon prediction)"
    assert (model.name, model.checkpoint_hash, model.default_size_px) == ("tiny", "0123456789", 512)
    forge.choose("another")
    assert ours.describe() == "another, not loaded yet"
    assert ours.chosen_model() == ModelReference("another", "/nowhere/another", "0123456789"), "not the one that is loaded"
    assert ours.open_model().name == "another"


@pytest.mark.parametrize("is_ours", [True, False])
def test_while_the_queue_is_held_others_get_what_is_loaded(forge: Any, ours: Any, is_ours: bool) -> None:
    """By a run of ours, or by Forge, which generates an image: the page must not wait for it."""
    found: list[str] = []

    def look() -> None:
        try:
            found.append(ours.open_model().name)
        except ModelError as error:
            found.append(str(error))

    def in_another_thread() -> None:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()

    with ours.lock() if is_ours else sys.modules["modules.call_queue"].queue_lock:
        in_another_thread()
    ours.open_model()
    forge.choose("another")
    with ours.lock() if is_ours else sys.modules["modules.call_queue"].queue_lock:
        in_another_thread()
    in_another_thread()
    assert found == ["No checkpoint is loaded yet, and Forge is busy: wait until it has finished.", "tiny", "another"]


def test_a_damaged_checkpoint_is_reported_and_the_last_one_can_be_loaded_again(forge: Any, ours: Any) -> None:
    ours.open_model()
    first = forge.data.forge_loading_parameters
    forge.choose("damaged")
    with pytest.raises(ModelError, match=r"damaged could not be loaded \(Failed to recognize model type!\): choose another"):
        ours.open_model()
    forge.data.forge_loading_parameters = first
    assert ours.open_model().name == "tiny"
    assert forge.loads == 2


def test_no_checkpoint(forge: Any, ours: Any) -> None:
    forge.data.forge_loading_parameters = {"checkpoint_info": None}
    for call in (ours.describe, ours.open_model):
        with pytest.raises(ModelError, match="No checkpoint is chosen: choose one"):
            call()


def test_precision_is_forges(ours: Any) -> None:
    with pytest.raises(ConfigError, match="expected auto: Forge chooses the precision"):
        ours.open_model(ModelOptions(precision="fp32"))


def test_clip_skip_has_as_many_steps_as_the_encoder_has_layers(ours: Any) -> None:
    with pytest.raises(ConfigError, match="found 4, expected 1 to 3"):
        ours.open_model(ModelOptions(clip_skip=4))


@pytest.mark.parametrize("forge", [{}, {"ersatz": True}], indirect=True, ids=["Forge", "ersatzForge"])
def test_changed_embeddings_are_read_again_and_no_damaged_file_is_renamed(
    forge: Any, ours: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def origin(path: str) -> float:
        return float(Path(path).read_text())

    def renaming(path: str) -> float:
        try:
            return origin(path)
        except ValueError:
            Path(path).rename(f"{path}.corrupted")
            raise

    monkeypatch.setattr(torch, "load_origin", origin, raising=False)
    monkeypatch.setattr(torch, "load", renaming)
    (tmp_path / "good.txt").write_text("1")
    (tmp_path / "damaged.txt").write_text("one")
    ours.embeddings_changed()  # before anything is loaded
    ours.open_model()  # which loads the embeddings too
    ours.embeddings_changed()
    from ti_trainer.hosts.webui import cards

    assert [*forge.data.sd_model.text_processing_engine.embeddings.word_embeddings] == ["good"]
    assert [*cards.written()] == ["good"]
    assert sorted(each.name for each in tmp_path.glob("*.txt*")) == ["damaged.txt", "good.txt"]
    assert vars(torch)["load"] is renaming
