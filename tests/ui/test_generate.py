"""The panel Generate says what became of the names in its prompts, as the command line does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fakes import D, TinyHost, TinyModel

from ti_trainer import formats
from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError
from ti_trainer.prompts import TokenizedPrompt
from ti_trainer.runs.job import Job
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels.create import check_name, create, outcome_of
from ti_trainer.ui.panels.generate import generated, report_html
from ti_trainer.ui.panels.preflight import _chunks


@pytest.fixture
def page(tmp_path: Path) -> Page:
    host = TinyHost(tmp_path)
    formats.write(Embedding("x-word", {"clip_l": torch.ones(2, D)}), host.embeddings_dir / "x-word.safetensors")
    return Page(host, Job())


def test_it_says_which_embeddings_were_used(page: Page) -> None:
    (_, caption, report), *more = generated(page, "an x-word", "", 1, 5, 7, 2, 0, 0)
    assert (caption, len(more)) == ("Seed 7", 1)
    assert "Embeddings used: x-word in the prompt." in report_html(report)
    ((_, _, report),) = generated(page, "an xword", None, 1, 5, 7, 1, 0, 0)
    text = report_html(report, "1 of 1. ")
    assert "1 of 1. No embedding was used." in text
    assert text.index("Did you mean x-word") < text.index("1 of 1")


def test_a_name_is_warned_of_as_on_the_command_line_and_one_that_no_prompt_can_hold_refused(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Every prompt that contains the word star would use this embedding. " in check_name(page, "star", False)
    replaced = check_name(page, "x-word", True)
    assert "x-word.safetensors will be replaced" in replaced
    monkeypatch.setattr(TinyModel, "tokenize", lambda *_: TokenizedPrompt(((0,) * 77,), ()))
    assert "No prompt can contain" in check_name(page, "my-star", False)
    with pytest.raises(ConfigError, match="No prompt can contain"):
        create(page, "my-star", "star", 1, False, warn=[].append)
    assert not (page.host.embeddings_dir / "my-star.safetensors").exists()


def test_prompts_as_they_are_fed_have_their_weights() -> None:
    prompt = TokenizedPrompt(((1, 5, 6, 9, *[9] * 73),), (), ((1, 1, 1.25, *[1] * 74),))
    assert _chunks(prompt, TinyModel()) == [[(1, "t1"), (5, "t5"), (6, "t6 × 1.25"), (9, "t9")]]


def test_create_shows_what_was_set_aside_and_which_text_is_left_out(page: Page) -> None:
    folder = page.host.embeddings_dir
    (folder / "x-word.pt").write_bytes(b"another")
    box, *_ = outcome_of(page, "x-word", "red cat on a mat", 2, True, 0, "*")
    assert "Created x-word" in box
    assert "x-word.pt had the same name in prompts as x-word.safetensors" in box
    assert "a part of the text is left out" in box
    assert (folder / "x-word.pt.bak").read_bytes() == b"another"
    assert "leave out .safetensors" in check_name(page, "new.safetensors", False)
