"""What is published of an embedding: everything a user of it needs, and nothing private."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ti_trainer import formats
from ti_trainer.__main__ import main
from ti_trainer.config.training import TrainConfig
from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs.integrity import digest
from ti_trainer.runs.run_folder import Run
from ti_trainer.workbench import share, share_files, share_page
from ti_trainer.workbench.share import Shared
from ti_trainer.workbench.share_files import contents, metadata, write

WIDTHS = {"SD 1.x": {"clip_l": 768}, "SD 2.x": {"clip_h": 1024}, "SDXL": {"clip_l": 768, "clip_g": 1280}}


def embedding(name: str, family: str = "SD 1.x", seed: int = 0, **fields: object) -> Embedding:
    generator = torch.Generator().manual_seed(seed)
    vectors = {encoder: torch.randn(2, width, generator=generator) for encoder, width in WIDTHS[family].items()}
    return Embedding(name, vectors, **{"step": 300, "checkpoint": "v1-5", "checkpoint_hash": "cc6cb27103", **fields})


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The embeddings folder with my-cat and its preview, and the log folder with its run."""
    home, log_dir = tmp_path / "embeddings", tmp_path / "logs"
    info = {"init_text": "cat", "num_images": 7, "metadata": {"ss_dir": "/home/me/x"}, "author": "/home/me"}
    cat = embedding("my-cat", checkpoint="/home/me/models/v1-5", info=info)
    formats.write(cat, home / "my-cat.safetensors")
    text = PngInfo()
    text.add_text("parameters", "secret prompt")
    Image.new("RGB", (64, 48), "red").save(home / "my-cat.preview.png", pnginfo=text)
    config = TrainConfig(
        learning_rate="0.004", discriminator=str(tmp_path / "secret"), template=str(tmp_path / "secret.txt")
    )
    settings = {"name": "my-cat", "images": str(tmp_path / "secret"), "num_images": 8, "train": config.to_dict()}
    Run.create(log_dir, "my-cat", {**settings, "embedding_files": {"my-cat": digest(cat.vectors)}})
    Run.create(log_dir, "my-cat", {**settings, "num_images": 99})
    return home, log_dir


def test_everything_that_a_user_needs_is_there_and_nothing_private(folders: tuple[Path, Path], tmp_path: Path) -> None:
    shared = replace(share.of_folder(*folders, "my-cat"), weight=0.8, description="A cat | <b>mine</b>", license="CC0-1.0")
    files = write(shared, tmp_path / "out")
    assert {path.name for path in files} == {path.name for path in (tmp_path / "out").iterdir()} == set(contents(shared))
    page = (tmp_path / "out" / "my-cat.md").read_text()
    for expected in (
        "`my-cat`",
        "`(my-cat:0.8)`",
        "| Base model | v1-5 [cc6cb27103] |",
        "| Steps | 300 |",
        "| Training images | 8 |",
        "| License | CC0-1.0 |",
        "learning rate 0.004",
        "embedding:my-cat",
        "pipe.load_textual_inversion('my-cat.safetensors', token='my-cat')",
        "my-cat.preview.png",
    ):
        assert expected in page, expected
    about = json.loads((tmp_path / "out" / "my-cat.json").read_text())
    assert (about["sd version"], about["activation text"], about["preferred weight"]) == ("SD1", "my-cat", 0.8)
    assert "negative text" not in about
    for path in files:
        content = path.read_bytes()
        for secret in (b"/home/me", b"secret", str(tmp_path).encode()):
            assert secret not in content, (path.name, secret)
    read = formats.read(tmp_path / "out" / "my-cat.safetensors")
    wanted = embedding("my-cat")
    assert torch.equal(read.vectors["clip_l"], wanted.vectors["clip_l"])
    assert (read.name, read.step, read.checkpoint, read.info["init_text"]) == ("my-cat", 300, "v1-5", "cat")
    assert torch.equal(formats.read(tmp_path / "out" / "my-cat-card.png").vectors["clip_l"], wanted.vectors["clip_l"])
    with Image.open(tmp_path / "out" / "my-cat.preview.png") as preview:
        assert (preview.size, preview.info) == ((64, 48), {})


def test_nothing_is_overwritten_without_being_told(folders: tuple[Path, Path], tmp_path: Path) -> None:
    shared = share.of_folder(*folders, "my-cat")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "my-cat.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"has my-cat\.md already") as refused:
        write(shared, tmp_path / "out")
    assert refused.value.option == "overwrite"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["my-cat.md"]
    write(shared, tmp_path / "out", overwrite=True)
    assert "(to be filled in)" in (tmp_path / "out" / "my-cat.md").read_text()


def test_all_files_are_written_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Shared(embedding("my-cat"))
    monkeypatch.setattr(share_files, "metadata", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write(shared, tmp_path / "out")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    assert sorted(each.name for each in write(shared, tmp_path / "out")) == sorted(contents(shared))
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == sorted(contents(shared))


@pytest.mark.parametrize("family", WIDTHS)
def test_each_family_is_named_and_told_how_to_be_loaded(family: str, tmp_path: Path) -> None:
    shared = Shared(embedding("word", family))
    assert share.public(shared.embedding).family == family
    assert metadata(shared)["sd version"] == {"SD 1.x": "SD1", "SD 2.x": "SD2", "SDXL": "SDXL"}[family]
    page = share_page.page(shared)
    assert ("text_encoder=pipe.text_encoder_2" in page) == (family == "SDXL")
    assert "preview.png)" not in page
    compile(page.partition("```python")[2].partition("```")[0], "example", "exec")
    write(shared, tmp_path)
    assert formats.read(tmp_path / "word.safetensors").widths == WIDTHS[family]


def test_negatives_are_published_with_what_they_are_for(folders: tuple[Path, Path], tmp_path: Path) -> None:
    home, log_dir = folders
    formats.write(embedding("my-cat-neg", seed=1), home / "my-cat-neg.safetensors")
    pair = share.of_folder(home, log_dir, "my-cat")
    assert metadata(pair)["negative text"] == "my-cat-neg"
    assert "and `my-cat-neg` in the negative prompt" in share_page.page(pair)
    write(pair, tmp_path / "out")
    assert formats.read(tmp_path / "out" / "my-cat-neg.safetensors").step == 300
    assert formats.read_negative(tmp_path / "out" / "my-cat-card.png").name == "my-cat-neg"
    alone = replace(share.of_folder(home, log_dir, "my-cat-neg"), for_negative=True)
    assert (metadata(alone)["activation text"], metadata(alone)["negative text"]) == ("", "my-cat-neg")
    assert "Write `my-cat-neg` in the negative prompt." in share_page.page(alone)


def test_only_the_run_of_these_vectors_is_described(folders: tuple[Path, Path]) -> None:
    home, log_dir = folders
    other = embedding("other", seed=5, step=20)
    assert share.run_of(log_dir, other) is None
    copied = Run.create(log_dir, "other", {"name": "other", "train": {}})
    copied.write_copy(other)
    assert share.run_of(log_dir, replace(other, name="renamed")) == copied
    assert share.of_folder(home, log_dir, "my-cat").run.settings()["num_images"] == 8


@pytest.mark.parametrize(("fields", "option"), [({"weight": 30}, "weight"), ({"embedding": embedding("a/b")}, "")])
def test_what_cannot_be_published_is_refused(fields: dict[str, object], option: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        write(replace(Shared(embedding("word")), **fields), tmp_path / "out")
    assert refused.value.option == option
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_is_included_before_it_writes(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, log_dir = folders
    command: Callable[..., int] = lambda *more: main(  # noqa: E731
        ["share", "my-cat", "--embeddings-dir", str(home), "--log-dir", str(log_dir), *more]
    )
    assert command("--list") == 0
    out = capsys.readouterr().out
    assert "my-cat-card.png" in out
    assert "# my-cat" in out
    assert not (log_dir / "shared").exists()
    assert command("--weight", "1.1") == 0
    assert "Wrote 5 files" in capsys.readouterr().out
    assert (log_dir / "shared" / "my-cat" / "my-cat.json").is_file()
    assert command() == 1
    assert "(--overwrite)" in capsys.readouterr().err
    assert embeddings_dir.find(home, "my-cat") == home / "my-cat.safetensors"
