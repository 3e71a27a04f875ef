"""What is written during a run says what happened, when it was asked to."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable
from pathlib import Path
from threading import Event as Flag

import pytest
import torch
from PIL import Image

from ti_trainer import formats
from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Dataset
from ti_trainer.errors import ConfigError
from ti_trainer.host import GenerationRequest
from ti_trainer.runs import callbacks
from ti_trainer.runs.builders import requests_of
from ti_trainer.runs.callbacks import Copies, Evaluation, LossTable, Previews, StateKeeper, TensorBoardLog
from ti_trainer.runs.plots import ROW_GAP_PX, before_and_after, plot_losses, preview_beside
from ti_trainer.runs.run_folder import Run
from ti_trainer.training import selection
from ti_trainer.training.evaluation import validation_loss
from ti_trainer.training.trainer import Finished, StepDone, Trainer


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path, "x-word", {"name": "x-word"})


def watch(trainer: Trainer, *watching: Callable[[object], None]) -> list[StepDone]:
    steps = []
    for event in trainer.run():
        for callback in watching:
            callback(event)
        steps += [event] if isinstance(event, StepDone) else []
    return steps


def table(run: Run) -> list[list[str]]:
    with run.loss_file.open(newline="") as file:
        return list(csv.reader(file))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_line_of_the_table_has_the_mean_loss_since_the_line_before(trainer: Callable[..., Trainer], run: Run) -> None:
    steps = watch(trainer(max_steps=9, learning_rate="0.005:5, 0.001"), LossTable(run, 3))
    header, *lines = table(run)
    assert header == ["step", "epoch", "epoch_step", "loss", "learn_rate"]
    assert [line[:3] for line in lines] == [["3", "0", "3"], ["6", "1", "1"], ["9", "1", "4"]]  # 5 images an epoch
    assert [float(line[4]) for line in lines] == [0.005, 0.001, 0.001]
    for number, line in enumerate(lines):
        losses = [each.loss.item() for each in steps[3 * number : 3 * number + 3]]
        assert float(line[3]) == pytest.approx(sum(losses) / 3, abs=1e-6)


def test_a_table_goes_on_without_a_second_header(trainer: Callable[..., Trainer], run: Run) -> None:
    for _ in range(2):
        watch(trainer(max_steps=4), LossTable(run, 2))
    assert [line[0] for line in table(run)] == ["step", "2", "4", "2", "4"]


def test_an_update_of_many_passes_is_one_step_with_their_mean_loss(trainer: Callable[..., Trainer], run: Run) -> None:
    steps = watch(trainer(max_steps=4, batch_size=2, gradient_accumulation_steps=2), LossTable(run, 1))
    assert [(each.step, each.epoch, each.epoch_step) for each in steps] == [(1, 0, 4), (2, 1, 3), (3, 2, 2), (4, 3, 1)]
    assert len(table(run)) == 5


def test_the_state_is_kept_every_so_many_steps(trainer: Callable[..., Trainer], run: Run) -> None:
    training, kept = trainer(max_steps=8), []

    def note(event: object) -> None:
        path = run.path / "state.safetensors"
        kept.append(run.load_state()[0].step if path.exists() else 0)

    watch(training, StateKeeper(run, training, 3, 1e9, "fingerprint"), note)
    assert kept == [0, 0, 3, 3, 3, 6, 6, 6, 6]
    assert run.load_state()[1] == "fingerprint"


def test_the_state_is_kept_after_so_many_seconds(
    trainer: Callable[..., Trainer], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, training, kept = itertools.count(10, 10), trainer(max_steps=9), []  # 10 seconds between looks at the clock
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(Run, "save_state", lambda self, state, fingerprint: kept.append(state.step))
    watch(training, StateKeeper(run, training, 1000, 25, "", _saved_at=0))
    assert kept == [3, 6, 9]


def test_copies_are_the_embedding_of_their_step(trainer: Callable[..., Trainer], run: Run) -> None:
    training, seen = trainer(max_steps=7), {}

    def note(event: object) -> None:
        seen[training.step] = training.embedding.vectors["clip_l"]

    watch(training, Copies(run, training, 3), note)
    assert names(run.path / "embeddings") == ["x-word-3.safetensors", "x-word-6.safetensors"]
    for step in (3, 6):
        copy = formats.read(run.path / "embeddings" / f"x-word-{step}.safetensors")
        assert (copy.step, copy.name) == (step, f"x-word-{step}")
        assert torch.equal(copy.vectors["clip_l"], seen[step])


def test_previews_are_drawn_before_the_first_every_so_many_and_after_the_last(
    trainer: Callable[..., Trainer], run: Run
) -> None:
    training, drawn = trainer(max_steps=7), []

    def generate(request: GenerationRequest, words: dict[str, dict[str, torch.Tensor]]) -> Image.Image:
        drawn.append((request, words["x-word"]["clip_l"]))
        return Image.new("RGB", (64, 64), (len(drawn), 0, 0))

    previews = Previews(run, training, generate, [GenerationRequest("", seed=5)], 3, cards=True)
    previews.before("a photo of x-word")
    steps = watch(training, previews)
    files = [f"x-word-{step}.png" for step in (0, 3, 6, 7)]
    assert names(run.path / "images") == names(run.path / "image_embeddings") == files
    assert [drawing.prompt for drawing, _ in drawn] == [
        "a photo of x-word",
        *(steps[step - 1].prompts[-1] for step in (3, 6, 7)),
    ]
    assert {drawing.seed for drawing, _ in drawn} == {5}
    for name, (_, vectors), shade in zip(files, drawn, range(1, 5), strict=True):
        assert Image.open(run.path / "images" / name).getpixel((0, 0)) == (shade, 0, 0)
        assert torch.equal(formats.read(run.path / "image_embeddings" / name).vectors["clip_l"], vectors)


def test_a_preview_prompt_is_kept_and_cards_can_be_left_out(trainer: Callable[..., Trainer], run: Run) -> None:
    training, prompts = trainer(max_steps=2), []

    def generate(request: GenerationRequest, words: object) -> Image.Image:
        prompts.append(request.prompt)
        return Image.new("RGB", (8, 8))

    watch(training, Previews(run, training, generate, [GenerationRequest("x-word on a beach")], 1, cards=False))
    assert prompts == ["x-word on a beach"] * 2
    assert not (run.path / "image_embeddings").exists()


def test_several_preview_prompts_make_one_image_and_the_webui_shows_the_first(
    trainer: Callable[..., Trainer], run: Run, tmp_path: Path
) -> None:
    config = TrainConfig(preview_prompt="a photo of [name]\n\n  [name] at night \n", preview_seed=3, width=64, height=40)
    requests = requests_of(config, "x-word")
    assert [(each.prompt, each.seed) for each in requests] == [("a photo of x-word", 3), ("x-word at night", 3)]
    assert [each.prompt for each in requests_of(TrainConfig(preview_prompt=""), "x-word")] == [""]
    shades = iter(range(10, 200, 10))

    def generate(request: GenerationRequest, words: object) -> Image.Image:
        return Image.new("RGB", (request.width, request.height), (next(shades), 0, 0))

    training = trainer(max_steps=1)
    watch(training, Previews(run, training, generate, requests, 1, cards=True))
    ((step, file),) = run.previews()
    assert step == 1
    with Image.open(file) as image:
        assert image.size == (64, 2 * 40 + ROW_GAP_PX)
        assert [image.getpixel((9, top))[0] for top in (0, 39, 40 + ROW_GAP_PX, 87)] == [10, 10, 20, 20]
    assert formats.read(run.path / "image_embeddings" / file.name).step == 1
    shown = preview_beside(run, tmp_path / "x-word.safetensors", 1)
    with Image.open(shown) as image:
        assert image.size == (64, 40)
    (run.path / "images" / "x-word-0.png").write_bytes(file.read_bytes())
    with Image.open(before_and_after(run, 1)) as both:
        assert both.size == (2 * 4 * 64 + 8, 4 * 88)


def test_there_may_not_be_too_many_preview_prompts() -> None:
    with pytest.raises(ConfigError, match="9 lines") as refused:
        TrainConfig(preview_prompt="\n".join("abcdefghi"))
    assert refused.value.option == "preview_prompt"


def asking(at: dict[int, Flag]) -> Callable[[object], None]:
    """Before others see an event of these steps, ask."""
    return lambda event: at[event.step].set() if isinstance(event, StepDone) and event.step in at else None


def test_without_an_interval_copies_and_previews_come_only_when_asked_for(trainer: Callable[..., Trainer], run: Run) -> None:
    training, copy, preview = trainer(max_steps=9), Flag(), Flag()
    copies = Copies(run, training, 0, copy)
    previews = Previews(
        run, training, lambda *_: Image.new("RGB", (8, 8)), [GenerationRequest("x")], 0, cards=True, requested=preview
    )
    watch(training, asking({4: copy, 7: preview}), copies, previews)
    assert names(run.path / "embeddings") == ["x-word-4.safetensors"]
    assert names(run.path / "images") == names(run.path / "image_embeddings") == ["x-word-7.png"]
    assert not copy.is_set()
    assert not preview.is_set()


def test_what_is_asked_for_does_not_move_what_comes_anyway(trainer: Callable[..., Trainer], run: Run) -> None:
    training, copy = trainer(max_steps=7), Flag()
    watch(training, asking({2: copy, 3: copy}), Copies(run, training, 3, copy))
    assert names(run.path / "embeddings") == [f"x-word-{step}.safetensors" for step in (2, 3, 6)]


def test_a_wish_that_comes_while_wishes_are_looked_at_is_not_lost(trainer: Callable[..., Trainer], run: Run) -> None:
    class Late(Flag):
        """Is set just after it was found not to be."""

        def is_set(self) -> bool:
            found = super().is_set()
            if not found and training.step == 3:
                self.set()
            return found

    training = trainer(max_steps=5)
    watch(training, Copies(run, training, 0, Late()))
    assert names(run.path / "embeddings") == ["x-word-4.safetensors"]


def test_nothing_asked_for_is_written_once_no_more_steps_come(trainer: Callable[..., Trainer], run: Run) -> None:
    training, copy = trainer(), Flag()
    copy.set()
    Copies(run, training, 1, copy)(Finished(0, "interrupted"))
    assert names(run.path) == ["settings.json"]


def test_the_validation_loss_is_measured_at_the_start_every_so_many_steps_and_at_the_end(
    trainer: Callable[..., Trainer], run: Run
) -> None:
    training = trainer(max_steps=7)
    plain = trainer(data=training.dataset, max_steps=7)
    evaluation = Evaluation(run, training, 3)
    evaluation.before()
    watch(training, evaluation)
    assert run.validation_file.read_text().splitlines()[0] == "step,loss"
    measured = run.validation_losses()
    assert [step for step, _ in measured] == [0, 3, 6, 7]
    list(plain.run())
    assert torch.equal(training.embedding.vectors["clip_l"], plain.embedding.vectors["clip_l"]), "measuring changed the run"
    items = training.dataset.items
    loss = validation_loss(
        training.model,
        items,
        [f"a photo of x-word, {item.caption}" for item in items],
        {"x-word": training.embedding.vectors},
    )
    assert measured[-1][1] == pytest.approx(loss, abs=1e-6)


def test_of_many_images_some_are_measured(
    trainer: Callable[..., Trainer], dataset: Callable[..., Dataset], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    monkeypatch.setattr(selection, "validation_loss", lambda model, items, *_, **__: counts.append(len(items)) or 1.0)
    for number in (3, 8, 9, 20):
        Evaluation(run, trainer(data=dataset(*((16, 16),) * number)), 1).before()
    assert counts == [3, 8, 5, 7]  # evenly spread, eight at most


def test_the_validation_loss_falls_when_a_word_is_learned(
    trainer: Callable[..., Trainer], dataset: Callable[..., Dataset], run: Run
) -> None:
    training = trainer(data=dataset(latent_sampling="deterministic"), max_steps=150, learning_rate="0.02", batch_size=5)
    evaluation = Evaluation(run, training, 50)
    evaluation.before()
    watch(training, evaluation)
    losses = [loss for _, loss in run.validation_losses()]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.97 * losses[0]


def test_tensorboard_has_loss_and_rate(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps = watch(trainer(max_steps=6, learning_rate="0.005:3, 0.001"), TensorBoardLog(tmp_path / "tensorboard", 2))
    written = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses, rates = written.Scalars("loss"), written.Scalars("learn_rate")
    assert [each.step for each in losses] == [each.step for each in rates] == [2, 4, 6]
    assert [each.value for each in losses] == pytest.approx([steps[number].loss.item() for number in (1, 3, 5)])
    assert [each.value for each in rates] == pytest.approx([0.005, 0.001, 0.001])


def test_observers_take_the_end_of_a_run_that_made_no_step(trainer: Callable[..., Trainer], run: Run) -> None:
    training = trainer()
    for callback in (LossTable(run, 1), StateKeeper(run, training, 1, 1e9, ""), Copies(run, training, 1)):
        callback(Finished(0, "interrupted"))
    assert names(run.path) == ["settings.json"]


def test_the_loss_curve_is_drawn_from_the_table(trainer: Callable[..., Trainer], run: Run) -> None:
    assert plot_losses(run) is None
    watch(trainer(max_steps=6), LossTable(run, 1))
    path = plot_losses(run)
    assert path == run.path / "loss.png"
    with Image.open(path) as image:
        assert image.size == (900, 495)
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert {(0x1F, 0x4E, 0x8C), (0xB5, 0x65, 0x1D)} <= colours  # the smoothed line, the rate
    assert (0xC0, 0x39, 0x2B) not in colours


def test_the_loss_curve_shows_validation_losses_where_there_are_any(trainer: Callable[..., Trainer], run: Run) -> None:
    training = trainer(max_steps=6)
    watch(training, LossTable(run, 1), Evaluation(run, training, 2))
    with Image.open(plot_losses(run)) as image:
        assert (0xC0, 0x39, 0x2B) in {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}


def test_the_last_preview_is_put_beside_the_embedding(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine" / "x.word.safetensors"
    assert preview_beside(run, file, 1000) is None
    images = run.path / "images"
    images.mkdir(exist_ok=True)
    preview = file.with_name("x.word.preview.png")
    for step, expected in ((0, None), (20, preview), (100, preview)):  # of step 0: nothing was learned by then
        Image.new("RGB", (8, 8), (step, 0, 0)).save(images / f"x.word-{step}.png")
        assert preview_beside(run, file, 1000) == expected
    with Image.open(preview) as drawn:
        assert drawn.getpixel((0, 0)) == (100, 0, 0)


@pytest.mark.parametrize("name", ["x-word.preview.png", "x-word.png", "x-word.preview.webp", "x-word.jpg"])
def test_an_image_that_somebody_chose_for_the_card_stays(run: Run, tmp_path: Path, name: str) -> None:
    file, theirs = tmp_path / "mine" / "x-word.safetensors", tmp_path / "mine" / name
    theirs.parent.mkdir()
    (run.path / "images").mkdir(exist_ok=True)
    for path in (theirs, run.path / "images" / "x-word-4.png"):
        Image.new("RGB", (8, 8)).save(path)
    before = theirs.read_bytes()
    assert preview_beside(run, file, 1000) is None
    assert theirs.read_bytes() == before
    assert list(file.parent.iterdir()) == [theirs]
    theirs.unlink()
    assert preview_beside(run, file, 1000) == file.with_name("x-word.preview.png")
    theirs.write_bytes(b"damaged, and maybe ours or not")
    assert preview_beside(run, file, 1000) is None
