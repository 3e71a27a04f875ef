"""A data set gives every picture its turn, in an order and with noise that follow from the seed alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from fakes import TinyModel
from PIL import Image

from ti_trainer.data.dataset import Batch, Dataset, alpha_weight, load_dataset
from ti_trainer.data.images import Frame
from ti_trainer.data.prompts import Prompter
from ti_trainer.errors import DatasetError

MIXED = ((16, 16), (24, 16), (16, 16), (16, 24), (24, 16), (16, 16), (24, 24))
PROMPTER = Prompter("x-word", ("[name], [filewords]",))


def contents(batch: Batch) -> list[tuple[bytes, bytes, int, str]]:
    """Samples of a batch, comparable bit for bit."""
    rows = zip(batch.latents, batch.noise, batch.timesteps.tolist(), batch.prompts, strict=True)
    return [
        (latents.numpy().tobytes(), noise.numpy().tobytes(), timestep, prompt) for latents, noise, timestep, prompt in rows
    ]


def samples(data: Dataset, batch_size: int, count: int, start: int = 0) -> list[tuple[bytes, bytes, int, str]]:
    return [each for batch in islice(data.batches(batch_size, start), count) for each in contents(batch)]


@pytest.mark.parametrize("repeats", [1, 3])
def test_each_epoch_is_a_permutation(dataset: Callable[..., Dataset], repeats: int) -> None:
    data = dataset(repeats=repeats)
    order = list(islice(data.order(), 40 * data.epoch_length))
    epochs = [tuple(order[start : start + data.epoch_length]) for start in range(0, len(order), data.epoch_length)]
    assert all(Counter(epoch) == dict.fromkeys(range(5), repeats) for epoch in epochs)
    assert len(set(epochs)) > 20  # 40 draws out of at least 120 orders


def test_the_order_follows_from_the_seed(dataset: Callable[..., Dataset]) -> None:
    assert list(islice(dataset(seed=1).order(), 50)) == list(islice(dataset(seed=1).order(), 50))
    assert list(islice(dataset(seed=1).order(), 50)) != list(islice(dataset(seed=2).order(), 50))


@pytest.mark.parametrize(
    "options", [{}, {"latent_sampling": "random"}, {"prompter": {"shuffle_tags": True, "tag_dropout": 0.3}}]
)
def test_a_sample_follows_from_the_seed_and_its_number_whatever_the_batches(
    dataset: Callable[..., Dataset], options: dict
) -> None:
    expected = samples(dataset(**options), 1, 12)
    torch.manual_seed(99)
    assert samples(dataset(**options), 3, 4) == expected
    assert samples(dataset(**options), 2, 4, start=2) == expected[4:]
    assert samples(dataset(seed=7, **options), 1, 12) != expected


def test_samples_are_random_independently(dataset: Callable[..., Dataset]) -> None:
    data = dataset()
    batches = list(islice(data.batches(1), 400))
    timesteps = Counter(batch.timesteps.item() for batch in batches)
    noise = torch.cat([batch.noise for batch in batches])
    assert set(timesteps) <= set(range(100))
    assert len(timesteps) > 90  # of 100; 98 are expected
    assert noise.unique(dim=0).shape == noise.shape
    assert abs(noise.mean()) < 0.06  # six standard deviations
    assert noise.std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_sizes_never_mix_in_a_batch_and_nothing_is_lost(dataset: Callable[..., Dataset], batch_size: int) -> None:
    data = dataset(*MIXED)
    epochs = 24
    named = {item.latents.numpy().tobytes(): number for number, item in enumerate(data.items)}
    wanted = Counter(islice(data.order(), epochs * len(MIXED)))
    assert set(wanted.values()) == {epochs}
    seen: Counter[int] = Counter()
    for batch in islice(data.batches(batch_size), epochs * len(MIXED) // batch_size):
        assert len(batch.latents) == batch_size  # and torch.stack refuses to mix sizes
        seen.update(named[each.numpy().tobytes()] for each in batch.latents)
    assert seen.total() == epochs * len(MIXED)
    assert all(abs(seen[number] - epochs) <= batch_size for number in range(len(MIXED)))  # a few wait for their batch


def test_with_batches_of_one_every_picture_comes_once_an_epoch(dataset: Callable[..., Dataset]) -> None:
    data = dataset(*MIXED)
    named = {item.latents.numpy().tobytes(): number for number, item in enumerate(data.items)}
    seen = [named[batch.latents[0].numpy().tobytes()] for batch in islice(data.batches(1), 3 * len(MIXED))]
    assert all(sorted(seen[start : start + 7]) == list(range(7)) for start in (0, 7, 14))


def test_a_batch_larger_than_the_data_set_waits_over_epochs(dataset: Callable[..., Dataset]) -> None:
    batch = next(dataset((16, 16), (16, 16)).batches(6))
    assert len(batch.latents) == 6
    assert len({noise for _, noise, _, _ in contents(batch)}) == 6


def test_once_keeps_one_draw_deterministic_the_mean_random_draws_anew(dataset: Callable[..., Dataset]) -> None:
    sizes = ((16, 16), (16, 16))
    mean = [item.latents for item in dataset(*sizes, latent_sampling="deterministic").items]

    def drawn(latent_sampling: str, seed: int = 0) -> list[set[bytes]]:
        data = dataset(*sizes, latent_sampling=latent_sampling, seed=seed)
        found = [set(), set()]
        for index, batch in zip(data.order(), islice(data.batches(1), 20), strict=False):
            found[index].add(batch.latents.numpy().tobytes())
        return found

    assert drawn("deterministic") == [{each.numpy().tobytes()} for each in mean]
    assert [len(each) for each in drawn("once")] == [1, 1]
    assert drawn("once") == drawn("once")
    assert drawn("once") != drawn("deterministic")
    assert drawn("once") != drawn("once", seed=1)
    assert sum(len(each) for each in drawn("random")) == 20


@pytest.mark.parametrize("latent_sampling", ["once", "random"])
def test_latents_are_drawn_with_the_spread_that_the_vae_gives(dataset: Callable[..., Dataset], latent_sampling: str) -> None:
    large = ((256, 256),)
    mean = dataset(*large, latent_sampling="deterministic").items[0].latents
    drawn = next(dataset(*large, latent_sampling=latent_sampling).batches(1)).latents[0]
    difference = drawn - mean
    assert difference.std() == pytest.approx(0.3, rel=0.06)  # TinyModel's
    assert abs(difference.mean()) < 0.03


@pytest.mark.parametrize("latent_sampling", ["once", "random"])
def test_what_latents_are_drawn_with_is_not_the_training_noise(
    dataset: Callable[..., Dataset], latent_sampling: str
) -> None:
    mean = dataset((64, 64), latent_sampling="deterministic").items[0].latents
    batch = next(dataset((64, 64), latent_sampling=latent_sampling).batches(1))
    drawn, noise = (batch.latents[0] - mean).flatten(), batch.noise.flatten()
    shifted = [torch.corrcoef(torch.stack([drawn.roll(shift), noise]))[0, 1].abs() for shift in range(-8, 9)]
    assert max(shifted) < 0.3


def test_the_fingerprint_tells_other_pictures_captions_and_seeds_apart(dataset: Callable[..., Dataset]) -> None:
    data = dataset()
    folder = data.items[0].path.parent
    assert dataset().fingerprint == data.fingerprint
    (folder / "0.txt").write_text("another caption")
    second = dataset().fingerprint
    assert second != data.fingerprint
    Image.new("RGB", (16, 16)).save(folder / "1.png")
    assert dataset().fingerprint != second


AS_IT_IS = Frame(None)


def load(folder: Path, frame: Frame = AS_IT_IS, **options: object) -> Dataset:
    return load_dataset(folder, TinyModel(), frame, PROMPTER, seed=0, **options)


def test_pictures_that_cannot_be_read_are_named_and_passed_over(pictures: Callable[..., Path]) -> None:
    folder = pictures((16, 16), (16, 16), (16, 16), (16, 16), (4, 4))
    (folder / "0.png").write_bytes(b"not a picture")
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:200])
    (folder / "5.jpg").touch()
    told: list[tuple[int, int]] = []
    data = load(folder, progress=lambda done, total: told.append((done, total)))
    assert [item.path.name for item in data.items] == ["2.png", "3.png"]
    assert [path.name for path, _ in data.skipped] == ["0.png", "1.png", "4.png", "5.jpg"]
    assert all(reason for _, reason in data.skipped)
    assert "4 x 4 px" in {path.name: reason for path, reason in data.skipped}["4.png"]
    assert told == [(number, 6) for number in range(1, 7)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "webp", "bmp", "tif", "avif"])
def test_damage_of_any_kind_is_never_worse_than_a_picture_passed_over(pictures: Callable[..., Path], ending: str) -> None:
    folder = pictures((16, 16))
    whole = folder / f"1.{ending}"
    try:
        Image.effect_noise((24, 16), 90).convert("RGB").save(whole)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {ending}")
    content = whole.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for number in range(40):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[int(torch.randint(len(content), (), generator=generator))] = int(
                torch.randint(256, (), generator=generator)
            )
        (folder / f"{number + 2}.{ending}").write_bytes(damaged[: len(content) - number * 3 if number % 4 == 0 else None])
    data = load(folder, Frame((16, 16)))
    assert len(data.items) + len(data.skipped) == 42
    assert len(data.items) >= 2


def test_a_folder_in_which_nothing_can_be_used_is_refused_with_reasons(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not a picture")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    with pytest.raises(DatasetError, match=r"None of the 2 pictures.*a\.png: .*b\.png: .*4 x 4"):
        load(tmp_path)


def test_the_alpha_weight_has_mean_1_and_lies_where_alpha_does() -> None:
    """Not square, and uneven: the left third of 48 x 16 px is opaque, the right third half so."""
    alpha = torch.zeros(1, 16, 48)
    alpha[..., :16], alpha[..., 32:] = 1, 0.5
    weight = alpha_weight(alpha, torch.zeros(4, 2, 6))
    torch.testing.assert_close(weight, torch.tensor([2.0, 2, 0, 0, 1, 1]).expand(1, 2, 6))


def test_the_least_alpha_counts_for_nothing_as_in_the_webui() -> None:
    alpha = torch.full((1, 8, 16), 0.25)
    alpha[..., 8:] = 0.75
    torch.testing.assert_close(alpha_weight(alpha, torch.zeros(4, 1, 2)), torch.tensor([[[0.0, 2.0]]]))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_same_alpha_all_over_weighs_nothing(alpha: float) -> None:
    assert torch.equal(alpha_weight(torch.full((1, 16, 8), alpha), torch.zeros(4, 2, 1)), torch.ones(1, 2, 1))


def test_pictures_with_and_without_alpha_share_a_batch(pictures: Callable[..., Path]) -> None:
    folder = pictures((16, 16), (16, 16))
    half = Image.new("RGBA", (16, 16), (200, 100, 50, 255))
    half.paste((0, 0, 0, 0), (0, 0, 8, 16))
    half.save(folder / "2.png")
    data = load(folder, Frame(None, use_alpha=True))
    assert [item.weight is None for item in data.items] == [True, True, False]
    batch = next(data.batches(3))
    rows = {tuple(each.flatten().tolist()) for each in batch.weight}
    assert batch.weight.shape == (3, 1, 2, 2)
    assert rows == {(1, 1, 1, 1), (0, 2, 0, 2)}
    assert next(load(folder).batches(3)).weight is None
