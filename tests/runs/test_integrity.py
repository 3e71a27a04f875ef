"""A run goes on only from what it wrote itself: what somebody else did to the embedding is neither undone nor lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from fakes import TinyHost

from ti_trainer import formats
from ti_trainer.config.training import TrainConfig
from ti_trainer.errors import ConfigError
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Controls, Result, Session
from ti_trainer.training.trainer import Event

CONFIG = TrainConfig(max_steps=8, width=16, height=16, preview_every=0, save_every=2, csv_every=1, state_every=1)
OPTIONS = {
    "plain": {},
    "dreamartist": {"negative": True},
    "average": {"ema_rate": 0.9, "ema_every": 3},
    "trials": {"trials": 3, "trial_learning_rates": "0.001, 0.5, 0.05", "trial_vectors": "; 3; 1"},
}
WITHOUT_TRIES = [OPTIONS[kind] for kind in ("plain", "dreamartist", "average")]


@dataclass
class Place:
    """A host, a folder of images, and what the runs there warned of."""

    host: TinyHost
    images: Path
    warned: list[str] = field(default_factory=list)

    def create(self, text: str = "red cat", name: str = "x-word") -> bytes:
        host = self.host
        return embeddings_dir.create(host.embeddings_dir, host.model, name, text, 2, overwrite=True).read_bytes()

    @property
    def file(self) -> Path:
        return self.host.embeddings_dir / "x-word.safetensors"

    def train(self, until: int = 99, at: dict[int, Callable[[], object]] | None = None, **options: object) -> Result:
        return self._session(None, False, until, at or {}, options)

    def resume(self, until: int = 99, overwrite: bool = False, **options: object) -> Result:
        return self._session(Run.latest(self.host.log_dir, "x-word"), overwrite, until, {}, options)

    def _session(
        self, run: Run | None, overwrite: bool, until: int, at: dict[int, Callable[[], object]], options: dict
    ) -> Result:
        controls = Controls()

        def act(event: Event) -> None:
            at.get(event.step, lambda: None)()
            if event.step >= until:
                controls.stop.set()

        config = replace(CONFIG, **options)
        session = Session(self.host, "x-word", self.images, config, run, self.warned.append, overwrite=overwrite)
        return session.train(lambda *_: [act], controls)


@pytest.fixture
def place(tmp_path: Path, images: Callable[..., Path]) -> Callable[[str], Place]:
    folder = images((16, 16), (16, 16), (16, 16))

    def make(name: str) -> Place:
        made = Place(TinyHost(tmp_path / name), folder)
        made.create("red cat")
        made.create("blue", "x-word-neg")
        return made

    return make


def same(one: Result, other: Result) -> bool:
    files = [(one.embedding_file, other.embedding_file), (one.negative_file, other.negative_file)]
    return all(torch.equal(*(formats.read(each).vectors["clip_l"] for each in pair)) for pair in files if None not in pair)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_was_stopped_goes_on_exactly_and_says_nothing(place: Callable[[str], Place], options: dict) -> None:
    one, other = place("one"), place("other")
    whole = one.train(**options)
    other.train(until=3, **options)
    other.resume(until=5, **options)
    assert same(other.resume(**options), whole)
    assert [said for said in other.warned if "was not" in said or "copy" in said] == []


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("text", ["blue moon", "red cat"], ids=["another text", "the text that the run began with"])
def test_an_embedding_created_anew_is_not_overwritten_unasked(
    place: Callable[[str], Place], options: dict, text: str
) -> None:
    here = place("here")
    first = here.train(until=4, **options)
    before = here.create(text)
    with pytest.raises(ConfigError, match=r"created again or replaced since.*This run is at step 4") as refused:
        here.resume(**options)
    assert refused.value.option == "overwrite"
    assert here.file.read_bytes() == before
    assert first.run.step == 4, "and the run can still go on"


@pytest.mark.parametrize("options", WITHOUT_TRIES)
def test_when_asked_to_it_goes_on_from_its_state_and_keeps_a_copy(place: Callable[[str], Place], options: dict) -> None:
    one, other = place("one"), place("other")
    whole = one.train(**options)
    run = other.train(until=4, **options).run
    before = other.create("blue moon")
    assert same(other.resume(overwrite=True, **options), whole)
    assert (run.path / "replaced" / "x-word.safetensors").read_bytes() == before
    assert any("continues from its own state of step 4; the file was copied to" in said for said in other.warned)


def test_an_earlier_copy_in_its_place_is_told_of_and_the_copy_of_the_state_is_no_change(
    place: Callable[[str], Place],
) -> None:
    here = place("here")
    run = here.train(until=6).run
    copies = dict(run.copies())
    shutil.copy(copies[2], here.file)
    with pytest.raises(ConfigError, match=r"is at step 2\. This run is at step 6"):
        here.resume()
    shutil.copy(copies[6], here.file)
    assert here.resume().embedding.step == 8


def test_a_negative_that_was_replaced_is_told_of(place: Callable[[str], Place]) -> None:
    here = place("here")
    here.train(until=4, negative=True)
    here.create("green", "x-word-neg")
    with pytest.raises(ConfigError, match="x-word-neg has been created again or replaced since"):
        here.resume(negative=True)


def test_a_later_run_is_not_undone_by_an_earlier_one(place: Callable[[str], Place]) -> None:
    here = place("here")
    earlier = here.train(until=3).run
    here.train(until=6)
    with pytest.raises(ConfigError, match=r"x-word has been trained to step 6 since\. This run is at step 3"):
        Session(here.host, "x-word", here.images, CONFIG, earlier).train()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("when", ["before the end", "when the state was written", "when the files were written, too"])
def test_a_run_that_was_killed_goes_on_exactly(
    place: Callable[[str], Place], options: dict, when: str, tmp_path: Path
) -> None:
    """What a kill leaves at each moment is put together from what was there before and after."""
    one, other = place("one"), place("other")
    whole = one.train(**options)
    during = tmp_path / "during"
    run = other.train(until=5, at={4: lambda: shutil.copytree(other.host.folder, during)}, **options).run
    settings = next(during.glob("logs/*/*/settings.json"))
    settings.replace(run.path / "settings.json")  # the last thing that a run writes
    if when != "when the files were written, too":
        for file in (during / "embeddings").glob("*.safetensors"):
            file.replace(other.host.embeddings_dir / file.name)
    if when == "before the end":
        next(during.glob("logs/*/*/state.safetensors")).replace(run.path / "state.safetensors")
    assert same(other.resume(**options), whole)


def test_what_another_program_writes_during_a_run_is_kept(place: Callable[[str], Place]) -> None:
    here = place("here")
    theirs: list[bytes] = []
    result = here.train(at={5: lambda: theirs.append(here.create("blue moon"))})
    assert formats.read(here.file).step == 8
    assert [each.read_bytes() for each in (result.run.path / "replaced").iterdir()] == theirs
    assert any("was changed during the run. The changed file was copied to" in said for said in here.warned)
    assert embeddings_dir.embedding_files(here.host.embeddings_dir) == [
        here.host.embeddings_dir / name for name in ("x-word-neg.safetensors", "x-word.safetensors")
    ]


def test_so_is_what_cannot_even_be_read(place: Callable[[str], Place]) -> None:
    here = place("here")
    result = here.train(at={5: lambda: here.file.write_bytes(b"half of a fi")})
    assert [each.read_bytes() for each in (result.run.path / "replaced").iterdir()] == [b"half of a fi"]


def test_a_run_of_an_earlier_version_goes_on_and_what_it_cannot_know_is_kept(place: Callable[[str], Place]) -> None:
    here = place("here")
    run = here.train(until=4).run
    settings = run.settings()
    del settings["embedding_files"]
    run.save_settings(settings)
    assert here.resume(until=6).embedding.step == 6
    assert not (run.path / "replaced").exists()
    run.save_settings(settings)
    before = here.create("blue moon")
    here.resume()
    assert (run.path / "replaced" / "x-word.safetensors").read_bytes() == before
