"""Which names prompts can hold and which they hold, and what people are told of it; on the embedded model."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from ti_trainer import formats
from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError
from ti_trainer.formats import embeddings_dir
from ti_trainer.formats.naming import PromptReport, has_word, name_warnings, near_name, prompt_report
from ti_trainer.prompts import escaped

if TYPE_CHECKING:
    from ti_trainer.hosts.diffusers.model import DiffusersModel


def kept(folder: Path, *names: str, width: int = 64) -> None:
    for name in names:
        formats.write(Embedding(name, {"clip_l": torch.ones(2, width)}), folder / f"{name}.safetensors")


def report(model: DiffusersModel, folder: Path, prompt: str, negative: str = "") -> PromptReport:
    return prompt_report(model, {"prompt": prompt, "negative prompt": negative}, *embeddings_dir.usable(folder, model))


@pytest.mark.parametrize("name", ["star", "a", "3", "2024", "3d", "1girl", "red star"])
def test_a_name_that_has_a_meaning_already_is_warned_of(embedded_model: DiffusersModel, tmp_path: Path, name: str) -> None:
    (warning,) = name_warnings(embedded_model, tmp_path, name)
    assert warning.startswith(f"Every prompt that contains the word{'s' * (' ' in name)} {name} would use this embedding. ")


@pytest.mark.parametrize("name", ["my-star", "w2", "sks-7", "zxqwy", "my_star", "рисунок-слово", "x.y"])
def test_other_names_are_not(embedded_model: DiffusersModel, tmp_path: Path, name: str) -> None:
    kept(tmp_path, "my-sta", "star", name)  # an earlier one of the same name is another matter
    assert name_warnings(embedded_model, tmp_path, name) == []


def test_names_that_prompts_cannot_tell_apart_are_warned_of(embedded_model: DiffusersModel, tmp_path: Path) -> None:
    kept(tmp_path, "my - cat", "my.cat")
    (warning,) = name_warnings(embedded_model, tmp_path, "my-cat")
    assert warning == "Prompts cannot distinguish my-cat from the existing my - cat: choose another name."


def test_names_that_stand_for_something_in_prompts(embedded_model: DiffusersModel, tmp_path: Path) -> None:
    for name in ("BREAK", "x BREAK y"):
        with pytest.raises(ConfigError, match="No prompt can contain the name"):
            name_warnings(embedded_model, tmp_path, name)
    (warning,) = name_warnings(embedded_model, tmp_path, "my-zx AND my-zy")
    assert "AND separates prompts" in warning
    assert name_warnings(embedded_model, tmp_path, "zxBREAK") == []


@pytest.mark.parametrize("name", ["(zx)", "[zx]", r"zx\y", "bad zx (v2)"])
def test_a_name_with_brackets_is_found_where_it_is_escaped(embedded_model: DiffusersModel, name: str) -> None:
    assert has_word(embedded_model, f"a photo of {escaped(name)}, ({escaped(name)}:1.2)", name)
    assert not has_word(embedded_model, f"a {name}", name)


def test_the_embeddings_of_both_prompts_are_told(embedded_model: DiffusersModel, tmp_path: Path) -> None:
    kept(tmp_path, "zx-cat", "zx-cat-neg", "zy")
    said = report(embedded_model, tmp_path, "a (ZX-cat:1.2) and zy, zx-cat", "zx-cat-neg")
    assert said == PromptReport("Embeddings used: zx-cat, zy in the prompt; zx-cat-neg in the negative prompt.", ())
    assert report(embedded_model, tmp_path, "a red star", "blurred") == PromptReport("No embedding was used.", ())
    assert report(embedded_model, tmp_path / "empty", "") == PromptReport("No embedding was used.", ())


def test_a_name_within_a_word_is_told(embedded_model: DiffusersModel, tmp_path: Path) -> None:
    kept(tmp_path, "w", "w-neg")
    said = report(embedded_model, tmp_path, "a W2x, w, w-neg at night")
    assert said.used == "Embeddings used: w, w-neg in the prompt."
    assert said.warnings == ("w was used for a part of W2x in the prompt: names are also found within words.",)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a photo of w2", "<w2>"),
        ("a photo of mycat", "my-cat"),
        ("a My Cat", "my-cat"),
        ("a my_cat, red", "my-cat"),
        ("a mycta", "my-cat"),
        ("a my-cet", "my-cat"),
        ("a my-at", "my-cat"),
        ("easynegativ", "EasyNegative"),
        ("the cat is in the house", None),
        ("a w3", None),
        ("", None),
        (", -, ()", None),
    ],
)
def test_a_near_name_is_found(prompt: str, name: str | None) -> None:
    assert near_name(prompt, ["<w2>", "my-cat", "my-house", "EasyNegative", "---"]) == name


def test_a_near_name_is_suggested_as_it_has_to_be_written(embedded_model: DiffusersModel, tmp_path: Path) -> None:
    kept(tmp_path, "zx (v2)")
    (warning,) = report(embedded_model, tmp_path, "a photo of zx (v2)").warnings
    assert warning == r"Did you mean zx \(v2\) in the prompt?"


def test_an_embedding_that_cannot_be_used_is_told_with_the_reason(embedded_model: DiffusersModel, tmp_path: Path) -> None:
    kept(tmp_path, "zx-old", width=768)
    (tmp_path / "zy-broken.pt").write_bytes(b"nothing")
    first, second = report(embedded_model, tmp_path, "zx-old with zy-broken").warnings
    assert first.startswith("zx-old in the prompt was not used: zx-old.safetensors is for SD 1.x models")
    assert second.startswith("zy-broken in the prompt was not used: ")
    assert report(embedded_model, tmp_path, "a cat").warnings == ()


def test_a_prompt_is_read_once_however_many_files_cannot_be_used(
    embedded_model: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [embeddings_dir.Found(Path(f"zx-{number}.pt"), None, f"broken {number}") for number in range(20)]
    prompts: list[str] = []
    tokenize = type(embedded_model).tokenize
    monkeypatch.setattr(
        type(embedded_model),
        "tokenize",
        lambda model, prompt, words: prompts.append(prompt) or tokenize(model, prompt, words),
    )
    said = prompt_report(embedded_model, {"prompt": "zx-19 on a zx-3", "negative prompt": "blurred"}, {}, broken)
    assert said.warnings == ("zx-3 in the prompt was not used: broken 3", "zx-19 in the prompt was not used: broken 19")
    assert len(prompts) == 4, "with the words that there are, and with those that cannot be used"


def test_only_names_that_may_be_meant_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    monkeypatch.setattr(difflib, "get_close_matches", lambda word, names, *_, **__: compared.append(len(names)) or [])
    near_name("a long prompt of other words " * 10, [f"style-{number}" for number in range(1000)])
    assert sum(compared) == 0
    near_name("my-cet", [*(f"my-{number}" for number in range(1000)), "my-cat"])
    assert sum(compared) == 1


def test_what_only_the_webui_does_and_vectors_left_behind_are_told(embedded_model: DiffusersModel, tmp_path: Path) -> None:
    kept(tmp_path, "zx")
    syntax, other = report(embedded_model, tmp_path, "zx <lora:x:1>", "[a|b]").warnings
    only = "is read as plain text: only the WebUI's image generation supports"
    assert syntax == f"<lora:x:1> in the prompt {only} extra networks."
    assert other == f"[a|b] in the negative prompt {only} alternating words."
    (behind,) = report(embedded_model, tmp_path, f"{'red ' * 70}, zx {'blue ' * 9}").warnings
    assert behind.startswith("zx is at the 75-token limit of the prompt.")
