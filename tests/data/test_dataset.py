"""A dataset gives every image its turn, in an order and with noise that follow from the seed alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import TinyModel
from PIL import Image

from ti_trainer.data.dataset import Batch, Dataset
from ti_trainer.data.images import Frame
from ti_trainer.data.loading import DatasetOptions, load_dataset
from ti_trainer.data.prompts import Prompter
from ti_trainer.data.subsets import Subset
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


def test_with_batches_of_one_every_image_comes_once_an_epoch(dataset: Callable[..., Dataset]) -> None:
    data = dataset(*MIXED)
    named = {item.latents.numpy().tobytes(): number for number, item in enumerate(data.items)}
    seen = [named[batch.latents[0].numpy().tobytes()] for batch in islice(data.batches(1), 3 * len(MIXED))]
    assert all(sorted(seen[start : start + 7]) == list(range(7)) for start in (0, 7, 14))


def test_a_batch_larger_than_the_dataset_waits_over_epochs(dataset: Callable[..., Dataset]) -> None:
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


def test_the_fingerprint_tells_other_images_captions_and_seeds_apart(dataset: Callable[..., Dataset]) -> None:
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
    return load_dataset(folder, TinyModel(), frame, PROMPTER, DatasetOptions(**options))


def test_images_that_cannot_be_read_are_named_and_passed_over(images: Callable[..., Path]) -> None:
    folder = images((16, 16), (16, 16), (16, 16), (16, 16), (4, 4))
    (folder / "0.png").write_bytes(b"not an image")
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:200])
    (folder / "5.jpg").touch()
    told: list[tuple[int, int]] = []
    progress = lambda done, total: told.append((done, total))  # noqa: E731
    data = load_dataset(folder, TinyModel(), AS_IT_IS, PROMPTER, progress=progress)
    assert [item.path.name for item in data.items] == ["2.png", "3.png"]
    assert [path.name for path, _ in data.skipped] == ["0.png", "1.png", "4.png", "5.jpg"]
    assert all(reason for _, reason in data.skipped)
    assert "4 x 4 px" in {path.name: reason for path, reason in data.skipped}["4.png"]
    assert told == [(number, 6) for number in range(1, 7)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "webp", "bmp", "tif", "avif"])
def test_damage_of_any_kind_is_never_worse_than_a_image_passed_over(images: Callable[..., Path], ending: str) -> None:
    folder = images((16, 16))
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
    (tmp_path / "a.png").write_bytes(b"not an image")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    with pytest.raises(DatasetError, match=r"None of the 2 images.*a\.png: .*b\.png: .*4 x 4"):
        load(tmp_path)


def test_images_with_and_without_alpha_share_a_batch(images: Callable[..., Path]) -> None:
    folder = images((16, 16), (16, 16))
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


def solid(folder: Path, count: int, shade: int = 0, size: tuple[int, int] = (16, 16)) -> Path:
    """A folder of images told apart by their shades."""
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", size, (shade + number, 0, 0)).save(folder / f"{number}.png")
    return folder


def several(subsets: Sequence[Subset], told: list[str] | None = None, **options: object) -> Dataset:
    frame = options.pop("frame", AS_IT_IS)
    warn = [].append if told is None else told.append
    return load_dataset(subsets, TinyModel(), frame, PROMPTER, DatasetOptions(**options), warn=warn)


def test_a_plain_folder_is_fed_in_the_order_it_always_was(dataset: Callable[..., Dataset]) -> None:
    """Runs that were begun before there were datasets of several folders go on exactly."""
    data = dataset(repeats=3, seed=4)
    expected = [np.random.default_rng((4, epoch)).permutation(15) % 5 for epoch in range(3)]
    assert list(islice(data.order(), 45)) == np.concatenate(expected).tolist()
    digest = hashlib.sha256()
    for item in data.items:
        digest.update(f"{item.path.name}\0{item.caption}\0{tuple(item.latents.shape)}".encode())
        digest.update(item.latents.numpy().tobytes())
    assert data.fingerprint == digest.hexdigest()[:16]


def test_each_epoch_has_each_image_as_often_as_its_folder_repeats(tmp_path: Path) -> None:
    subsets = [Subset(solid(tmp_path / "a", 3), 1), Subset(solid(tmp_path / "b", 2), 4), Subset(solid(tmp_path / "c", 1), 2)]
    data = several(subsets, repeats=2)
    assert data.epoch_length == 2 * (3 + 8 + 2)
    order = list(islice(data.order(), 10 * 26))
    for start in range(0, len(order), 26):
        assert Counter(order[start : start + 26]) == {0: 2, 1: 2, 2: 2, 3: 8, 4: 8, 5: 4}


def test_a_folders_weight_multiplies_the_loss_of_its_images_and_its_masks(tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    half = Image.new("L", (16, 16))
    half.paste(255, (0, 0, 8, 16))
    half.save(masks / "0.png")
    plain, twice = solid(tmp_path / "a", 1), solid(tmp_path / "b", 1)
    subsets = [Subset(plain), Subset(twice, weight=2.0), Subset(twice, weight=0.5, masks=masks)]
    data = several(subsets)
    weights = [None if item.weight is None else item.weight[0, 0].tolist() for item in data.items]
    assert weights == [None, [2, 2], [1, 0]]  # a mask of mean 1 is 2 and 0
    batch = data.batch([(0, 0), (1, 1), (2, 2)])
    assert batch.weight[:, 0, 0].tolist() == [[1, 1], [2, 2], [1, 0]]


def test_the_fingerprint_tells_repeats_weights_and_masks_apart(tmp_path: Path) -> None:
    folder, masks = solid(tmp_path / "a", 2), tmp_path / "masks"
    masks.mkdir()
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 8, 16))
    mask.save(masks / "0.png")

    def fingerprint(**how: object) -> str:
        return several([Subset(folder, **how)]).fingerprint

    seen = [fingerprint(), fingerprint(repeats=2), fingerprint(repeats=3), fingerprint(weight=2.0), fingerprint(masks=masks)]
    mask.paste(255, (0, 0, 16, 8))
    mask.save(masks / "0.png")
    seen.append(fingerprint(masks=masks))
    assert len(set(seen)) == len(seen)
    assert fingerprint(class_tokens="", weight=1) == seen[0]


def test_regularisation_images_without_the_word_are_left_out_and_it_is_said_why(tmp_path: Path) -> None:
    thing, kind = solid(tmp_path / "thing", 2), solid(tmp_path / "class", 3, 100)
    (kind / "0.txt").write_text("a photo of x-word, a toy")
    (kind / "1.txt").write_text("an x-wordy toy")  # begins with it, but is another word
    told: list[str] = []
    data = several([Subset(thing), Subset(kind, class_tokens="toy", is_reg=True)], told)
    assert [item.caption for item in data.items] == [None, None, "a photo of x-word, a toy"]
    (said,) = told
    assert "Not used: 2 regularisation images." in said
    assert "does not contain x-word" in said
    assert "Put [name] into their class_tokens" in said


def test_regularisation_images_keep_their_prompt_and_have_the_prior_loss_weight(tmp_path: Path) -> None:
    thing, kind = solid(tmp_path / "thing", 2), solid(tmp_path / "class", 2, 100)
    subsets = [Subset(thing, class_tokens="hat"), Subset(kind, class_tokens="[name] toy, a, b", is_reg=True, weight=0.5)]
    words = Prompter("x-word", ("a photo of [name], [filewords]",), shuffle_tags=True, tag_dropout=0.9)
    data = load_dataset(subsets, TinyModel(), AS_IT_IS, words, DatasetOptions(prior_loss_weight=0.5))
    for batch in islice(data.batches(1), 12):
        if "toy" in batch.prompts[0]:
            assert batch.prompts == ("x-word toy, a, b",)
            assert batch.weight.unique().tolist() == [0.25]
        else:
            assert batch.prompts[0].startswith("a photo of x-word, ")
            assert batch.weight is None
    assert [item.path.parent for item in data.images_of_the_thing] == [thing, thing]


@pytest.mark.parametrize(
    ("things", "repeats", "classes", "of_each", "expected"),
    [
        (4, 1, 4, 1, [1, 1, 1, 1]),
        (5, 2, 3, 1, [4, 3, 3]),  # 10 in all
        (5, 2, 3, 3, [4, 3, 3]),
        (4, 1, 3, 3, [3, 3]),  # each all of its repeats, until there are enough
        (2, 1, 5, 1, [1, 1]),
        (1, 7, 1, 1, [7]),
    ],
)
def test_regularisation_images_come_up_as_often_as_the_others_as_in_kohyas_trainers(
    tmp_path: Path, things: int, repeats: int, classes: int, of_each: int, expected: list[int]
) -> None:
    thing, kind = solid(tmp_path / "thing", things), solid(tmp_path / "class", classes)
    told: list[str] = []
    data = several([Subset(kind, of_each, class_tokens="[name] toy", is_reg=True), Subset(thing, repeats)], told)
    assert [item.repeats for item in data.items if item.subset.is_reg] == expected
    assert [item.repeats for item in data.items if not item.subset.is_reg] == [repeats] * things
    unused = classes - len(expected)
    assert [text.split(":")[0] for text in told] == ([f"{unused} regularisation images are not used"] if unused else [])


def test_a_dataset_needs_images_of_the_thing(tmp_path: Path) -> None:
    kind, broken = solid(tmp_path / "class", 2), tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"no image")
    reg = Subset(kind, class_tokens="[name] toy", is_reg=True)
    with pytest.raises(DatasetError, match="only regularisation images"):
        several([reg])
    with pytest.raises(DatasetError, match=r"None of the 2 images in .*broken can be used \(a\.png"):
        several([reg, Subset(broken)])


def test_with_buckets_a_batch_has_one_size_and_nothing_is_lost(images: Callable[..., Path]) -> None:
    folder = images((300, 200), (200, 300), (200, 200), (330, 210), (64, 64), (199, 305), (900, 600))
    data = load(folder, Frame((256, 256), buckets=True))
    shapes = [tuple(item.latents.shape[1:]) for item in data.items]
    assert Counter(shapes) == {(24, 40): 3, (40, 24): 2, (32, 32): 2}
    order = list(islice(data.order(), 7 * 6))
    assert all(sorted(order[start : start + 7]) == list(range(7)) for start in range(0, 42, 7))
    named = {item.latents.numpy().tobytes(): number for number, item in enumerate(data.items)}
    seen: Counter[int] = Counter()
    for batch in islice(data.batches(2), 7 * 6):
        assert len(batch.latents) == 2  # torch.stack refuses to mix sizes
        seen.update(named[each.numpy().tobytes()] for each in batch.latents)
    assert all(abs(seen[number] - 12) <= 2 for number in range(7))  # a few wait for their batch


def test_every_second_sample_may_be_noise_with_nothing_else_changed(dataset: Callable[..., Dataset]) -> None:
    plain = dataset()
    batches = (islice(each.batches(1), 12) for each in (plain, replace(plain, noise_instead=True)))
    latents = {item.latents.numpy().tobytes() for item in plain.items}
    for number, (usual, other) in enumerate(zip(*batches, strict=True)):
        assert contents(usual)[0][1:] == contents(other)[0][1:]
        assert (other.latents[0].numpy().tobytes() in latents) == (number % 2 == 0)
        if number % 2:
            assert 0.5 < other.latents.std() < 1.5
            assert not torch.equal(other.latents, other.noise)


def test_a_pair_of_embeddings_is_trained_on_the_same_samples(dataset: Callable[..., Dataset]) -> None:
    prompts = {"negative": "x-word-neg", "shuffle_tags": True}
    plain, both = (next(dataset(prompter={**prompts, "both": each}).batches(2, streams=(0, 1))) for each in (False, True))
    assert both.negative_prompts == ()
    for number, prompt in enumerate(plain.prompts):
        rows = slice(2 * number, 2 * number + 2)
        assert both.prompts[rows] == (prompt, plain.negative_prompts[number])
        for name in ("latents", "noise", "timesteps"):
            assert all(torch.equal(each, getattr(plain, name)[number]) for each in getattr(both, name)[rows])
    assert len(both.images.sizes) == len(both.prompts) == 8
