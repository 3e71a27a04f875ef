"""Law 7: read(write(e)) == e for every format, what other tools wrote we read, and what we write they read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats import FORMATS, read, write

INTEROP = Path(__file__).parents[1] / "fixtures" / "interop"
EXPECTED = json.loads((INTEROP / "expected.json").read_text())
FULL = {"safetensors", "webui", "card"}  # the others carry vectors only
CASES = [
    (name, ending, family)
    for name, form in FORMATS.items()
    for ending in form.extensions
    for family in ("SD 1.x", "SD 2.x", "SDXL", "embedded")
    if (name, family) != ("webui", "SDXL")
]


@pytest.mark.parametrize(("name", "ending", "family"), CASES)
def test_what_is_written_is_read_back(name, ending, family, make, assert_same, tmp_path: Path) -> None:
    embedding = make(family)
    path = tmp_path / f"{embedding.name}{ending}"
    write(embedding, path, name)
    again = read(path)
    assert_same(again, embedding, vectors_only=name not in FULL)
    assert again.family == family
    if family != "SDXL":
        assert again.info["format"] == name


def test_safetensors_carry_everything_said_of_an_embedding(make, assert_same, tmp_path: Path) -> None:
    extra = {"num_images": 20, "note": "20", "prompts": ["a", "b"], "text": 'say "hi"', "none": None}
    for rest in ({"info": extra}, {"step": 0, "checkpoint": None, "checkpoint_hash": None}):
        embedding = make(**rest)
        write(embedding, tmp_path / "other-name.safetensors")
        assert_same(read(tmp_path / "other-name.safetensors"), embedding)


def test_the_same_embedding_makes_the_same_bytes(make, tmp_path: Path) -> None:
    for name, form in FORMATS.items():
        paths = [tmp_path / f"{copy}{form.extensions[0]}" for copy in "ab"]
        for path in paths:
            write(make(), path, name)
        assert paths[0].read_bytes() == paths[1].read_bytes(), name


@pytest.mark.parametrize("file", EXPECTED)
def test_files_of_other_tools(file: str) -> None:
    expected = EXPECTED[file]
    if "holds" in expected:
        with pytest.raises(EmbeddingFormatError, match=r"re-encoded.*Get the original PNG"):
            read(INTEROP / file)
        return
    embedding = read(INTEROP / file, t5="t5" in expected)
    for encoder, vectors in embedding.vectors.items():
        numbers = expected.get(encoder) or expected["vectors"]
        assert list(vectors.shape) == numbers["shape"]
        assert vectors[0, :4].tolist() == pytest.approx(numbers["first"], abs=1e-6)
        assert vectors[-1, -1].item() == pytest.approx(numbers["last"], abs=1e-6)
        assert vectors.sum().item() == pytest.approx(numbers["sum"], abs=1e-3)
    assert set(embedding.vectors) == set(expected) & {"clip_l", "clip_g", "t5"} or "vectors" in expected
    assert embedding.step == expected.get("step", 0)
    assert embedding.checkpoint_hash == expected.get("sd_checkpoint", embedding.checkpoint_hash)
    assert embedding.checkpoint == expected.get("sd_checkpoint_name", embedding.checkpoint)
    assert embedding.name == expected.get("name", embedding.name)
    assert embedding.info.get("token") == expected.get("token", "<gnome>" if file == "diffusers-sdxl" else None)
    if "tool" in expected:
        assert embedding.info["tool"].split()[0] == expected["tool"].split()[0]


def test_names_come_from_the_file_where_it_says_none() -> None:
    assert read(INTEROP / "rinongal-three.pt").name == "rinongal-three"
    assert read(INTEROP / "kohya-sd1.safetensors").name == "kohya-sd1"
    assert read(INTEROP / "kohya-sd1.safetensors").info["metadata"]["modelspec.title"] == "kohya-sd1"
    assert read(INTEROP / "learned_embeds.bin").name == "cat-toy"
    assert read(INTEROP / "diffusers-sdxl").name == "gnome"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_is_read_as_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    vectors = torch.randn(2, 768).to(dtype)
    safetensors.torch.save_file({"x": vectors}, tmp_path / "a.safetensors")
    torch.save({"x": vectors}, tmp_path / "a.pt")
    torch.save(vectors, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "a.pt", "old.bin"):
        assert torch.equal(read(tmp_path / name).vectors["clip_l"], vectors.float())


def test_old_files_of_torch_save_are_read(make, assert_same, tmp_path: Path) -> None:
    embedding = make()
    terms = torch.nn.ParameterDict({"*": torch.nn.Parameter(embedding.vectors["clip_l"])})
    torch.save({"string_to_param": terms, "name": "my-cat"}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert_same(read(tmp_path / "a.pt"), embedding, vectors_only=True)
    torch.save({"b": torch.arange(8.0)[2:].reshape(3, 2).T}, tmp_path / "view.pt", _use_new_zipfile_serialization=False)
    assert read(tmp_path / "view.pt").vectors["clip_l"].tolist() == [[2, 4, 6], [3, 5, 7]]


def test_two_files_are_one_embedding_only_if_they_belong_together(make, assert_same, tmp_path: Path) -> None:
    write(make("SDXL"), tmp_path / "my-cat.safetensors", "diffusers")
    assert {path.name for path in tmp_path.iterdir()} == {"my-cat.safetensors", "my-cat_2.safetensors"}
    write(make("SDXL"), tmp_path / "learned_embeds-steps-5.safetensors", "diffusers")
    assert (tmp_path / "learned_embeds_2-steps-5.safetensors").is_file()
    assert read(tmp_path / "learned_embeds-steps-5.safetensors").family == "SDXL"
    safetensors.torch.save_file({"<another>": torch.ones(3, 1280)}, tmp_path / "my-cat_2.safetensors")
    assert read(tmp_path / "my-cat.safetensors").family == "SD 1.x"


def test_our_safetensors_have_honest_metadata(make, tmp_path: Path) -> None:
    for family, architecture in ("SD 1.x", "stable-diffusion-v1/textual-inversion"), ("SD 2.x", None):
        write(make(family, info={"num_images": 5}), tmp_path / "a.safetensors")
        with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
            metadata = file.metadata()
            assert list(file.keys()) == ["emb_params"]
        assert metadata.get("modelspec.architecture") == architecture
        assert (metadata["name"], metadata["step"], metadata["num_images"]) == ("my-cat", "500", "5")
        assert (metadata["sd_checkpoint"], metadata["sd_checkpoint_name"]) == ("6ce0161689", "v1-5-pruned")


def test_a_format_and_an_ending_must_fit(make, tmp_path: Path) -> None:
    for path, name in (
        ("a.txt", None),
        ("a.pt", "safetensors"),
        ("a.safetensors", "webui"),
        ("a", None),
        ("a.pt", "no such"),
    ):
        with pytest.raises(EmbeddingFormatError, match="expected one of: safetensors"):
            write(make(), tmp_path / path, name)
    with pytest.raises(EmbeddingFormatError, match=r"SDXL.*\.safetensors"):
        write(make("SDXL"), tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_neither_read_nor_written(wrong: float, make, tmp_path: Path) -> None:
    embedding = make()
    embedding.vectors["clip_l"][1, 2] = wrong
    with pytest.raises(EmbeddingFormatError, match="1 of its 2304 numbers are not finite"):
        write(embedding, tmp_path / "a.safetensors")
    safetensors.torch.save_file(embedding.vectors, tmp_path / "b.safetensors")
    with pytest.raises(EmbeddingFormatError, match="1 of its 2304 numbers are not finite"):
        read(tmp_path / "b.safetensors")


def loaded_by_diffusers(path: Path, width: int, token: str | None, folder: Path) -> torch.Tensor:
    """The rows that diffusers' own loader gives to the tokens of <my-cat> in a text encoder of this width."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder.mkdir(exist_ok=True)
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    sizes = {"hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **sizes))
    pipe = StableDiffusionPipeline(None, encoder, tokenizer, None, None, None, None, requires_safety_checker=False)
    pipe.load_textual_inversion(path, token=token)
    ids = tokenizer.convert_tokens_to_ids(["<my-cat>", "<my-cat>_1", "<my-cat>_2"])
    assert len(set(ids)) == 3
    return encoder.get_input_embeddings().weight[ids].detach()


@pytest.mark.parametrize(
    ("name", "ending"), [(name, ending) for name, form in FORMATS.items() for ending in form.extensions if name != "card"]
)
def test_diffusers_loads_what_we_write(name: str, ending: str, make, tmp_path: Path) -> None:
    embedding = make("embedded")
    path = tmp_path / f"my-cat{ending}"
    write(embedding, path, name)
    token = None if name.startswith("diffusers") else "<my-cat>"
    assert torch.equal(loaded_by_diffusers(path, 64, token, tmp_path / "tokenizer"), embedding.vectors["clip_l"])


def test_diffusers_loads_both_files_of_sdxl(make, tmp_path: Path) -> None:
    embedding = make("SDXL")
    write(embedding, tmp_path / "learned_embeds.safetensors", "diffusers")
    for file, vectors in zip(("learned_embeds", "learned_embeds_2"), embedding.vectors.values(), strict=True):
        path = tmp_path / f"{file}.safetensors"
        assert torch.equal(loaded_by_diffusers(path, vectors.shape[1], None, tmp_path / "tokenizer"), vectors)
