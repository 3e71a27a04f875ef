"""The folder of embeddings: which file a name means, what fits a model, what is passed over."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from ti_trainer import formats
from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError
from ti_trainer.formats import embeddings_dir

MODEL = SimpleNamespace(
    name="tiny",
    checkpoint_hash="0123456789",
    widths={"clip_l": 8},
    token_embeddings=lambda text: {"clip_l": torch.arange(8.0).repeat(len(text.split()), 1)},
)


def put(path: Path, name: str = "saved as", width: int = 8, count: int = 1, value: float = 0.5) -> Path:
    formats.write(Embedding(name, {"clip_l": torch.full((count, width), value)}, 4), path)
    return path


def test_files_that_may_hold_embeddings(tmp_path: Path) -> None:
    wanted = [put(tmp_path / name) for name in ("a.pt", "b.safetensors", "sub/c.bin", "sub/d.png", "sub/sub/E.PT")]
    for name in ("a.preview.png", ".a-x1.pt", "notes.txt", "a.pt.optim"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.pt").mkdir()
    assert embeddings_dir.embedding_files(tmp_path) == sorted(wanted)
    assert embeddings_dir.embedding_files(tmp_path / "missing") == []


def test_a_name_means_the_file_of_that_name(tmp_path: Path) -> None:
    put(tmp_path / "thing.png", value=0.25)
    put(tmp_path / "sub" / "thing.pt", value=0.1)
    put(tmp_path / "things.safetensors")
    assert embeddings_dir.find(tmp_path, "thing") == tmp_path / "sub" / "thing.pt"
    put(tmp_path / "thing.safetensors")
    embedding, path = embeddings_dir.load(tmp_path, "thing")
    assert path == tmp_path / "thing.safetensors"
    assert (embedding.name, embedding.step) == ("thing", 4)
    meant = embeddings_dir.words(tmp_path, MODEL)["thing"]["clip_l"]
    assert torch.equal(meant, embedding.vectors["clip_l"])
    with pytest.raises(ConfigError, match=r"no embedding 'thin' .*\(found: thing, things\)"):
        embeddings_dir.load(tmp_path, "thin")
    with pytest.raises(ConfigError, match="none yet"):
        embeddings_dir.load(tmp_path / "missing", "thing")


def test_words_are_what_fits_and_the_rest_is_passed_over_with_a_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "good one.pt", count=3)
    put(tmp_path / "sub" / "card.png")
    put(tmp_path / "wide.pt", width=768)
    put(tmp_path / "long.pt", count=76)
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    put(tmp_path / "locked.pt")
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    read = formats.read

    def reading(path: Path) -> Embedding:
        if path.stem == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(formats, "read", reading)
    words = embeddings_dir.words(tmp_path, MODEL)
    assert {name: tuple(vectors["clip_l"].shape) for name, vectors in words.items()} == {"good one": (3, 8), "card": (1, 8)}
    reasons = {record.getMessage() for record in caplog.records}
    assert len(reasons) == 5
    for name, reason in {
        "broken.safetensors": "cannot be read",
        "wide.pt": "SD 1.x",
        "long.pt": "76 vectors",
        "locked.pt": "denied",
        "image.png": "cannot be read",
    }.items():
        assert any(name in each and reason in each for each in reasons), reasons


def test_a_survey_names_every_file_and_why_it_cannot_be_used(tmp_path: Path) -> None:
    put(tmp_path / "b good.pt", count=75)
    put(tmp_path / "c long.pt", count=76)
    put(tmp_path / "d wide.safetensors", width=1024)
    (tmp_path / "a broken.pt").write_bytes(b"x")
    found = list(embeddings_dir.survey(tmp_path, MODEL))
    assert [each.path.stem for each in found] == ["a broken", "b good", "c long", "d wide"]
    assert [each.embedding is not None for each in found] == [False, True, False, False]
    assert found[1].embedding.num_vectors == 75
    assert "a broken.pt cannot be read" in found[0].reason
    assert found[1].reason == ""
    assert found[2].reason == "c long.pt has 76 vectors; a prompt has room for 75."
    assert found[3].reason == "d wide.safetensors is for SD 2.x models, not for tiny."


def test_a_survey_reads_no_further_than_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.pt", "b.pt"):
        put(tmp_path / name)
    read, original = [], formats.read
    monkeypatch.setattr(formats, "read", lambda path: read.append(path.name) or original(path))
    assert next(embeddings_dir.survey(tmp_path, MODEL)).path.name == "a.pt"
    assert read == ["a.pt"]


def test_create_writes_where_the_name_already_is(tmp_path: Path) -> None:
    old = put(tmp_path / "sub" / "thing.pt")
    with pytest.raises(ConfigError, match=r"an embedding 'thing' already .*or overwrite it"):
        embeddings_dir.create(tmp_path, MODEL, "thing", "star", 2)
    assert embeddings_dir.create(tmp_path, MODEL, "thing", "red star", 2, overwrite=True) == old
    created = formats.read(old)
    assert (created.step, created.checkpoint, created.checkpoint_hash) == (0, "tiny", "0123456789")
    assert created.vectors["clip_l"].tolist() == torch.arange(8.0).repeat(2, 1).tolist()
    new = embeddings_dir.create(tmp_path / "new folder", MODEL, "Ünï cøde", "", 1)
    assert new == tmp_path / "new folder" / "Ünï cøde.safetensors"
    assert not formats.read(new).vectors["clip_l"].any(), "no text begins as zeros"


@pytest.mark.parametrize("count", [0, 76])
def test_create_refuses_what_fits_into_no_prompt(count: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"found {count}, expected 1 to 75"):
        embeddings_dir.create(tmp_path, MODEL, "thing", "star", count)
    assert not list(tmp_path.iterdir())


def test_what_is_learned_takes_the_place_of_a_bin_which_is_set_aside(tmp_path: Path) -> None:
    old = tmp_path / "thing.bin"
    old.write_bytes(b"as diffusers wrote it")
    embeddings_dir.save(Embedding("thing", {"clip_l": torch.ones(1, 8)}), embeddings_dir.trainable_file(old, 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thing.bin.bak", "thing.safetensors"]
    assert (tmp_path / "thing.bin.bak").read_bytes() == b"as diffusers wrote it"


def test_nothing_that_was_set_aside_is_overwritten_and_it_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    for number in range(3):
        (tmp_path / "thing.pt").write_bytes(bytes([number]))
        embeddings_dir.save(Embedding("thing", {"clip_l": torch.ones(1, 8)}), tmp_path / "thing.safetensors", told.append)
    kept = [tmp_path / f"thing.pt.bak{number}" for number in ("", 2, 3)]
    assert [path.read_bytes() for path in kept] == [b"\0", b"\1", b"\2"]
    assert told == [
        f"thing.pt had the same name in prompts as thing.safetensors: it was renamed to {path}." for path in kept
    ]


def test_a_name_that_ends_like_a_file_is_refused_for_what_is_new_and_else_a_hint(tmp_path: Path) -> None:
    for name in ("catx.safetensors", "catx.PT", "cat.png"):
        with pytest.raises(ConfigError, match=rf"leave out \.\w+, as in '{name.split('.')[0]}'"):
            embeddings_dir.create(tmp_path, MODEL, name, "star", 1)
    assert not list(tmp_path.iterdir())
    assert embeddings_dir.create(tmp_path, MODEL, "v1.5 cat", "star", 1).name == "v1.5 cat.safetensors"
    put(tmp_path / "qa.pt")
    for name in ("qa.pt", "qa.safetensors", "embeddings/qa.safetensors", "embeddings\\qa.pt", "embeddings/qa"):
        with pytest.raises(ConfigError, match=r"did you mean 'qa'\?"):
            embeddings_dir.load(tmp_path, name)
    with pytest.raises(ConfigError, match="create it first"):
        embeddings_dir.load(tmp_path, "embeddings/another.pt")


def test_create_tells_of_text_that_is_left_out(tmp_path: Path) -> None:
    told: list[str] = []
    embeddings_dir.create(tmp_path, MODEL, "thing", "red star", 2, warn=told.append)
    assert told == []
    embeddings_dir.create_pair(tmp_path, MODEL, ("a", "red star", 1), ("red star moon", 2), warn=told.append)
    assert told == [
        "The initial text 'red star' has 2 tokens for only 1 vector: a part of the text is left out.",
        "The initial text 'red star moon' has 3 tokens for only 2 vectors: a part of the text is left out.",
    ]
