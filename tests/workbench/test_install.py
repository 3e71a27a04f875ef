"""A file that was given becomes an embedding of the folder: every tool's file, cards, pairs; and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ti_trainer import formats
from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError, EmbeddingFormatError
from ti_trainer.workbench import bin
from ti_trainer.workbench.install import Installed, given, install

INTEROP = Path(__file__).parents[1] / "fixtures" / "interop"
READABLE = sorted(each.name for each in INTEROP.iterdir() if each.suffix in (".pt", ".bin", ".safetensors", ".png", ".webp"))


def put_in(folder: Path, *files: Path, name: str = "cat", overwrite: bool = False) -> Installed:
    with given(files) as what:
        return install(folder, what, name, overwrite=overwrite)


@pytest.mark.parametrize("name", READABLE)
def test_every_tools_file_is_installed_with_the_same_vectors(name: str, tmp_path: Path) -> None:
    before = formats.read(INTEROP / name)
    done = put_in(tmp_path, INTEROP / name)
    assert done.files == (tmp_path / "cat.safetensors",)
    after = formats.read(done.files[0])
    assert after.name == "cat"
    assert (after.step, after.checkpoint) == (before.step, before.checkpoint)
    assert all(torch.equal(after.vectors[encoder], each) for encoder, each in before.vectors.items())
    if name.endswith(".safetensors"):
        assert done.files[0].read_bytes() == (INTEROP / name).read_bytes()
    else:
        assert "Converted to cat.safetensors" in " ".join(done.notes)


def test_a_card_becomes_the_preview_too_and_brings_its_negative(tmp_path: Path) -> None:
    word, negative = (Embedding(name, {"clip_l": torch.ones(2, 768) * size}) for name, size in (("x", 1), ("x-neg", 2)))
    formats.write_card(Image.new("RGB", (512, 512)), word, tmp_path / "x.png", negative=negative)
    folder = tmp_path / "embeddings"
    done = put_in(folder, tmp_path / "x.png")
    assert [each.name for each in done.files] == ["cat.safetensors", "cat-neg.safetensors"]
    assert (folder / "cat.preview.png").read_bytes() == (tmp_path / "x.png").read_bytes()
    assert formats.read(done.files[1]).vectors["clip_l"].max() == 2


def test_the_two_files_of_sdxl_are_joined_from_different_folders(tmp_path: Path) -> None:
    files = []
    for number, source in enumerate(sorted((INTEROP / "diffusers-sdxl").glob("learned_embeds*"), reverse=True)):
        files.append(tmp_path / str(number) / source.name)
        files[-1].parent.mkdir()
        files[-1].write_bytes(source.read_bytes())
    done = put_in(tmp_path / "embeddings", *files)
    assert formats.read(done.files[0]).family == "SDXL"
    with pytest.raises(ConfigError, match="do not belong together"):
        put_in(tmp_path / "embeddings", files[0], INTEROP / "webui-two.pt", name="dog")


def test_nothing_is_overwritten_unless_told_and_then_the_old_file_is_in_the_bin(tmp_path: Path) -> None:
    old = put_in(tmp_path, INTEROP / "kohya-sd1.safetensors").files[0].read_bytes()
    with pytest.raises(ConfigError) as refused:
        put_in(tmp_path, INTEROP / "webui-two.pt", name="CAT")
    assert refused.value.option == "overwrite"
    assert (tmp_path / "cat.safetensors").read_bytes() == old
    done = put_in(tmp_path, INTEROP / "webui-two.pt", overwrite=True)
    assert "in the bin" in " ".join(done.notes)
    (kept,) = bin.deleted(tmp_path)
    stored = bin.bin_of(tmp_path) / kept.id / "cat.safetensors.deleted"
    assert stored.read_bytes() == old
    assert formats.read(tmp_path / "cat.safetensors").num_vectors == 2


def test_the_second_file_of_an_overwritten_embedding_does_not_stay_behind(tmp_path: Path) -> None:
    vectors = {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}
    formats.write(Embedding("cat", vectors), tmp_path / "cat.safetensors", "diffusers")
    put_in(tmp_path, INTEROP / "kohya-sd1.safetensors", overwrite=True)
    assert [each.name for each in tmp_path.glob("*.safetensors")] == ["cat.safetensors"]
    assert len(bin.deleted(tmp_path)[0].files) == 2


@pytest.mark.parametrize("name", ["", "..", "a/b", ".x", "con", "x" * 300, "cat.pt"])
def test_hostile_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        put_in(tmp_path / "embeddings", INTEROP / "webui-two.pt", name=name)
    assert not (tmp_path / "embeddings").exists() or not list((tmp_path / "embeddings").iterdir())


def test_a_name_is_suggested_that_can_be_used(tmp_path: Path) -> None:
    def suggested(path: Path) -> str:
        with given([path]) as what:
            return what.suggested_name

    assert suggested(INTEROP / "learned_embeds.bin") == "cat-toy"
    assert suggested(INTEROP / "card-sd1-pixels-only.png") == "card-sd1"
    formats.write(Embedding("<script>/../", {"clip_l": torch.ones(1, 768)}), tmp_path / "a.pt")
    assert suggested(tmp_path / "a.pt") == "script"
    formats.write(Embedding("con", {"clip_l": torch.ones(1, 768)}), tmp_path / "a.pt")
    assert suggested(tmp_path / "a.pt") == "a"


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_a_picture_without_an_embedding_is_called_that(kind: str, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / f"a.{kind}")
    with pytest.raises(EmbeddingFormatError, match="is a picture without an embedding"), given([tmp_path / f"a.{kind}"]):
        pass


def test_exchanged_vectors_are_written_corrected(tmp_path: Path) -> None:
    save_file({"clip_g": torch.ones(2, 768), "clip_l": torch.ones(2, 1280)}, tmp_path / "a.safetensors")
    done = put_in(tmp_path / "embeddings", tmp_path / "a.safetensors")
    assert "swapped" in " ".join(done.notes)
    assert "repaired" not in formats.read(done.files[0]).info
