"""The panel Runs: copies of a DreamArtist run with a moving average, and taking one of them into use with its negative."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

import torch
from browser import launch
from fakes import TinyHost
from test_page import Served, entry, fill, says, served, show, status, until  # noqa: F401, the fixture

from ti_trainer import formats
from ti_trainer.config.training import TrainConfig
from ti_trainer.files import checked_name
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs.job import Job
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import run_actions, runs

pytestmark = pytest.mark.page

OPTIONS = {"max_steps": 4, "preview_every": 0, "save_every": 2, "width": 16, "height": 16, "ema_rate": 0.9}


@pytest.fixture
def page(tmp_path: Path) -> Page:
    host = TinyHost(tmp_path / "host")
    embeddings_dir.create_pair(host.embeddings_dir, host.model, ("x-word", "red cat", 2), ("*", 3))
    return Page(host, Job())


@pytest.fixture
def trained(page: Page, images: Callable[..., Path]) -> Callable[..., tuple[Run, str]]:
    """Trains x-word; the run and its label in the list."""
    folder = images((16, 16), (16, 16))

    def train(**options: object) -> tuple[Run, str]:
        run = Session(page.host, "x-word", folder, TrainConfig(**{**OPTIONS, **options})).train().run
        return run, runs.label_of(run)

    return train


def choices(page: Page, label: str) -> tuple[list[str], str | None, str]:
    """The copies in the list, the selected one, and the suggested name."""
    details = runs.details(page, label)
    return list(details.copies), details.copies[0] if details.copies else None, details.name


def in_use(page: Page) -> set[str]:
    return {path.name for path in page.host.embeddings_dir.iterdir()}


def test_averages_stand_beside_the_copies_of_their_step_and_each_has_a_name_to_go_by(page: Page, trained) -> None:
    _, label = trained(negative=True)
    offered, chosen, name = choices(page, label)
    assert offered == ["4", "4, moving average", "2", "2, moving average"]
    assert (chosen, name) == ("4", "x-word-4")
    proposed = [runs.suggest_name(page, label, each) for each in offered]
    assert proposed == ["x-word-4", "x-word-4-ema", "x-word-2", "x-word-2-ema"]
    for copy, proposal in zip(offered, proposed, strict=True):
        assert checked_name(proposal) == proposal
        assert run_actions.promote_copy(page, label, copy, proposal, overwrite=False).startswith(
            '<div class="ti-notice ti-good"'
        )
    files = {f"{each}{negative}.safetensors" for each in ("x-word", *proposed) for negative in ("", "-neg")}
    assert in_use(page) == files


def test_without_copies_or_without_a_run_no_name_is_proposed(page: Page, trained) -> None:
    run, label = trained(save_every=0)
    for path in (run.path / "embeddings").iterdir():
        path.unlink()
    assert choices(page, label) == ([], None, "")
    assert choices(page, "2020-01-01/gone (step 1 of 2)") == ([], None, "")
    assert runs.suggest_name(page, "2020-01-01/gone (step 1 of 2)", "4") == runs.gr.update()
    assert runs.suggest_name(page, label, None) == ""
    assert "Choose a copy" in run_actions.promote_copy(page, label, None, "other", False)


def test_a_plain_run_has_plain_copies_and_promotes_one_file(page: Page, trained) -> None:
    _, label = trained(ema_rate=0.0)
    assert choices(page, label) == (["4", "2"], "4", "x-word-4")
    said = run_actions.promote_copy(page, label, "2", "other", False)
    assert "other.safetensors" in said
    assert in_use(page) == {"x-word.safetensors", "x-word-neg.safetensors", "other.safetensors"}


@pytest.mark.parametrize("copy", ["2", "2, moving average"])
def test_a_copy_goes_into_use_with_the_negative_that_was_made_with_it(copy: str, page: Page, trained) -> None:
    run, label = trained(negative=True)
    assert "other-neg.safetensors" in run_actions.promote_copy(page, label, copy, " other ", False)
    kind = "-ema" if "average" in copy else ""
    for name, kept in (("other", f"x-word{kind}-2"), ("other-neg", f"x-word-neg{kind}-2")):
        found, wanted = (
            embeddings_dir.load(page.host.embeddings_dir, name)[0],
            formats.read(run.path / f"embeddings/{kept}.safetensors"),
        )
        assert torch.equal(found.vectors["clip_l"], wanted.vectors["clip_l"])
        assert (found.step, found.num_vectors) == (2, 3 if name.endswith("-neg") else 2)
        assert formats.read(page.host.embeddings_dir / f"{name}.safetensors").name == name


@pytest.mark.parametrize("taken", ["other", "OTHER-neg"])
def test_if_one_name_is_taken_neither_is_written_unless_that_is_allowed(taken: str, page: Page, trained) -> None:
    _, label = trained(negative=True)
    file = page.host.embeddings_dir / f"{taken}.safetensors"
    formats.write(embeddings_dir.load(page.host.embeddings_dir, "x-word")[0], file)
    before, content, changes = in_use(page), file.read_bytes(), page.host.changes
    said = run_actions.promote_copy(page, label, "4", "other", False)
    assert f"There is an embedding &#x27;other{'-neg' if 'neg' in taken else ''}&#x27; already" in said
    assert in_use(page) == before
    assert (file.read_bytes(), page.host.changes) == (content, changes)
    assert "other-neg.safetensors" in run_actions.promote_copy(page, label, "4", "other", True).lower()
    assert file.read_bytes() != content
    assert len(in_use(page)) == len(before) + 1


@pytest.mark.parametrize("name", ["", "  ", "a/b", ".hidden", "con", "x" * 300])
def test_a_name_that_will_not_do_is_refused_and_nothing_is_written(name: str, page: Page, trained) -> None:
    _, label = trained(negative=True)
    before = in_use(page)
    assert "ti-error" in run_actions.promote_copy(page, label, "4", name, False)
    assert in_use(page) == before


def test_in_the_page_the_name_follows_the_copy_and_the_negative_comes_along(served: Served) -> None:  # noqa: F811
    with launch() as page:
        served.open(page, "Create embedding")
        fill(page, "create_name", "my-pair")
        page.locator(".label-wrap:visible").get_by_text("DreamArtist", exact=True).click()
        number = page.locator("#ti_trainer_create_negative_vectors input[type=number]")
        number.fill("3")
        number.press("Tab")
        page.click("#ti_trainer_create_button")
        says(page, "create_outcome", "my-pair-neg was created too")
        show(page, "Train")
        until(lambda: entry(page, "train_name").input_value() == "my-pair")
        fill(page, "train_images", str(served.images))
        fill(page, "train_max_steps", "4")
        page.locator(".label-wrap:visible").get_by_text("All options", exact=True).click()
        page.locator("#ti_trainer_train_negative input").check()
        fill(page, "train_ema_rate", "0.9")
        fill(page, "train_save_every", "2")
        page.click("#ti_trainer_train_start")
        until(lambda: status(page) == "done")
        says(page, "result", "my-pair-neg.safetensors")
        says(page, "details", "my-pair-ema-4.safetensors")

        page.click("#ti_trainer_open_run")
        until(lambda: entry(page, "runs_name").input_value() == "my-pair-4")
        for choice, name in (
            ("2, moving average", "my-pair-2-ema"),
            ("2", "my-pair-2"),
            ("4, moving average", "my-pair-4-ema"),
        ):
            entry(page, "runs_copy").click()
            page.locator("[role=option], .options .item").get_by_text(re.compile(rf"^\W*{choice}\s*$")).click()
            until(lambda name=name: entry(page, "runs_name").input_value() == name)
        page.click("#ti_trainer_runs_promote")
        says(page, "runs_promoted", "my-pair-4-ema-neg.safetensors")

        show(page, "Train")
        page.click("#ti_trainer_use")
        until(lambda: entry(page, "generate_negative").input_value() == "a photo of my-pair-neg on grass")
        assert entry(page, "generate_prompt").input_value() == "a photo of my-pair on grass"
        assert page.locator("#ti_trainer_generate_scale input[type=number]").input_value() == "3"
