"""Masks are found, cropped as their images are, and weigh the loss; spread, they reach what belongs together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import TinyModel
from PIL import Image
from test_dataset import PROMPTER, several, solid
from test_images import AS_IT_IS, gradient, saved

from ti_trainer.data.attention_spread import spread, spread_folder, spread_mask
from ti_trainer.data.images import Frame, load_image
from ti_trainer.data.loading import DatasetOptions, load_dataset
from ti_trainer.data.masks import find_masks, masks_beside
from ti_trainer.data.subsets import Subset
from ti_trainer.errors import DatasetError
from ti_trainer.functional.mask_weight import mask_weight


def test_masks_are_found_by_stem_in_any_format(tmp_path: Path) -> None:
    for name in ("a.png", "b.JPG", "c.txt", ".d.png"):
        (tmp_path / name).touch()
    assert {stem: path.name for stem, path in find_masks(tmp_path).items()} == {"a": "a.png", "b": "b.JPG"}
    with pytest.raises(DatasetError, match=r"mask directory .* does not exist"):
        find_masks(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["a_att.png", "a-masklabel.png", "a_att.jpg"])
def test_a_mask_beside_its_image_is_found(name: str, tmp_path: Path) -> None:
    for each in ("a.jpg", name, "b.png", "c_att.png", "_att.png"):
        Image.new("L", (16, 16)).save(tmp_path / each)
    assert masks_beside(tmp_path) == {"a": tmp_path / name}
    assert masks_beside(tmp_path / "nowhere") == {}


def test_of_two_masks_dreamartists_counts(tmp_path: Path) -> None:
    for each in ("a.jpg", "a-masklabel.png", "a_att.png"):
        Image.new("L", (16, 16)).save(tmp_path / each)
    assert masks_beside(tmp_path)["a"].name == "a_att.png"


def test_masks_beside_images_are_not_trained_on(images: Callable[..., Path]) -> None:
    folder = images((16, 16), (16, 16))
    for mask in ("0_att.png", "1-masklabel.png"):
        Image.new("L", (16, 16), 255).save(folder / mask)
    data = load_dataset(folder, TinyModel(), Frame(None), PROMPTER, DatasetOptions(seed=1))
    assert [item.path.name for item in data.items] == ["0.png", "1.png"]


@pytest.mark.parametrize("frame", [Frame((40, 24)), Frame((24, 40)), Frame(None), Frame((128, 128), buckets=True)])
@pytest.mark.parametrize("at", [1.0, 0.5])
def test_a_mask_is_cropped_as_its_image_is(tmp_path: Path, frame: Frame, at: float) -> None:
    """The image is its own mask, so that both must come out the same."""
    blocks = np.random.default_rng(3).integers(0, 256, (12, 20), np.uint8)
    image = Image.fromarray(blocks).resize((204, 124), Image.Resampling.BICUBIC)
    mask = image if at == 1 else image.resize((102, 62), Image.Resampling.BOX)
    exif = Image.Exif()
    exif[0x0112] = 6  # both lie on their side
    path = saved(tmp_path, "x.png", image.convert("RGB"), exif=exif)
    pixels, counts, _ = load_image(path, frame, saved(tmp_path, "m.png", mask, exif=exif))
    assert counts.shape == (1, *pixels.shape[1:])
    assert (counts - (pixels[:1] + 1) / 2).abs().mean() < (0.003 if at == 1 else 0.03)


def test_a_mask_counts_more_than_alpha_and_must_have_the_shape_of_its_image(tmp_path: Path) -> None:
    path = saved(tmp_path, "x.png", gradient(32, 16, "RGBA"))
    white = saved(tmp_path, "white.png", Image.new("L", (16, 8), 255))
    _, counts, _ = load_image(path, Frame(None, use_alpha=True), white)
    assert torch.equal(counts, torch.ones(1, 16, 32))
    pixels, *_ = load_image(path, AS_IT_IS, saved(tmp_path, "black.png", Image.new("L", (16, 8), 0)))
    assert torch.equal(pixels, load_image(path, AS_IT_IS)[0])  # what does not count is not blackened
    with pytest.raises(DatasetError, match=r"its mask other\.png is 16 x 16 px, expected the aspect ratio of 32 x 16 px"):
        load_image(path, AS_IT_IS, saved(tmp_path, "other.png", Image.new("L", (16, 16))))


def test_dreamartists_greys_count_from_nothing_to_five_times(tmp_path: Path) -> None:
    greys = np.repeat([0, 64, 127, 128, 191, 255], 8).astype(np.uint8)[None].repeat(8, 0)
    image = saved(tmp_path, "a.png", Image.new("RGB", (48, 8)))
    mask = saved(tmp_path, "a_att.png", Image.fromarray(greys))
    counts = load_image(image, AS_IT_IS, mask).counts
    wanted = [0, 64 / 127, 1, 1 + 4 / 128, 1 + 4 * 64 / 128, 5]  # peers.md 2.2, 6
    assert counts[0, 0, ::8].tolist() == pytest.approx(wanted, rel=1e-6)
    other = load_image(image, AS_IT_IS, saved(tmp_path, "a-masklabel.png", Image.fromarray(greys))).counts
    assert other[0, 0, ::8].tolist() == pytest.approx([each / 255 for each in (0, 64, 127, 128, 191, 255)])


def test_the_alpha_weight_has_mean_1_and_lies_where_alpha_does() -> None:
    """Not square, and uneven: the left third of 48 x 16 px is opaque, the right third half so."""
    alpha = torch.zeros(1, 16, 48)
    alpha[..., :16], alpha[..., 32:] = 1, 0.5
    weight = mask_weight(alpha, torch.zeros(4, 2, 6))
    torch.testing.assert_close(weight, torch.tensor([2.0, 2, 0, 0, 1, 1]).expand(1, 2, 6))


def test_the_least_alpha_counts_for_nothing_as_in_the_webui() -> None:
    alpha = torch.full((1, 8, 16), 0.25)
    alpha[..., 8:] = 0.75
    found = mask_weight(alpha, torch.zeros(4, 1, 2), is_alpha=True)
    torch.testing.assert_close(found, torch.tensor([[[0.0, 2.0]]]))
    as_a_mask = mask_weight(alpha, torch.zeros(4, 1, 2))  # whose greys say how much, the least of them, too
    torch.testing.assert_close(as_a_mask, torch.tensor([[[0.5, 1.5]]]))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_same_alpha_all_over_weighs_nothing(alpha: float) -> None:
    found = mask_weight(torch.full((1, 16, 8), alpha), torch.zeros(4, 2, 1), is_alpha=True)
    assert torch.equal(found, torch.ones(1, 2, 1))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("outside", [0.0, 0.25])
def test_where_a_mask_marks_nothing_all_is_outside(normalize: bool, outside: float) -> None:
    found = mask_weight(torch.zeros(1, 16, 8), torch.zeros(4, 2, 1), outside, normalize=normalize)
    assert torch.equal(found, torch.full((1, 2, 1), outside))


def test_a_image_of_which_its_mask_leaves_nothing_is_put_aside(tmp_path: Path) -> None:
    folder = solid(tmp_path / "a", 3)
    for number, grey in ((0, 0), (1, 200)):
        Image.new("L", (16, 16), grey).save(folder / f"{number}_att.png")
    data = several([Subset(folder)])
    assert [item.path.stem for item in data.items] == ["1", "2"]
    assert torch.equal(data.items[0].weight, torch.ones(1, 2, 2))
    assert [reason for _, reason in data.skipped] == [
        "its mask 0_att.png marks nothing in the part of the image that is used"
    ]
    assert [item.path.stem for item in several([Subset(folder)], mask_outside=0.1).items] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("outside", "normalize", "wanted"),
    [
        (0.0, True, [0.0, 0, 2 / 3, 10 / 3, 0, 2]),
        (0.0, False, [0.0, 0, 1, 5, 0, 3]),
        (0.5, False, [0.5, 0.5, 1, 5, 0.5, 3]),
        (1.0, True, [0.5, 0.5, 0.5, 2.5, 0.5, 1.5]),
    ],
)
def test_what_a_mask_leaves_out_counts_as_chosen(outside: float, normalize: bool, wanted: list[float]) -> None:
    counts = torch.tensor([0.0, 0, 1, 5, 0, 3]).repeat_interleave(8).expand(1, 16, 48)
    weight = mask_weight(counts, torch.zeros(4, 2, 6), outside, normalize=normalize)
    torch.testing.assert_close(weight, torch.tensor(wanted).expand(1, 2, 6))


def test_masks_beside_images_weigh_the_loss_and_a_mask_folder_goes_before(tmp_path: Path) -> None:
    folder, masks = solid(tmp_path / "images", 3), tmp_path / "masks"
    masks.mkdir()
    left, right = (Image.new("L", (16, 16), 0) for _ in range(2))
    left.paste(255, (0, 0, 8, 16))
    right.paste(255, (8, 0, 16, 16))
    for number in (0, 1):
        left.save(folder / f"{number}-masklabel.png")
    right.save(masks / "1.png")
    data = several([Subset(folder, masks=masks)])
    weights = [None if item.weight is None else item.weight[0, 0].tolist() for item in data.items]
    assert weights == [[2, 0], [0, 2], None]
    beside = several([Subset(folder)])
    assert [item.has_mask for item in beside.items] == [True, True, False]
    (folder / "0-masklabel.png").unlink()
    assert several([Subset(folder)]).fingerprint != beside.fingerprint
    plain = several([Subset(folder)], mask_outside=1.0)
    assert plain.items[1].weight[0, 0].tolist() == [1, 1]


def test_images_without_a_mask_count_all_over_and_are_counted(tmp_path: Path) -> None:
    folder, masks = solid(tmp_path / "a", 3), solid(tmp_path / "masks", 2, shade=200)
    (masks / "1.png").unlink()
    told: list[str] = []
    data = several([Subset(folder, masks=masks)], told)
    assert told == [f"2 of 3 images in {folder} have no mask in {masks}. All their pixels are trained on."]
    assert [item.weight is None for item in data.items] == [False, True, True]


def test_a_mask_of_another_shape_puts_its_image_aside(tmp_path: Path) -> None:
    folder, masks = solid(tmp_path / "a", 2), tmp_path / "masks"
    masks.mkdir()
    Image.new("L", (24, 16)).save(masks / "1.png")
    data = several([Subset(folder, masks=masks)])
    ((path, reason),) = data.skipped
    assert path.name == "1.png"
    assert reason.startswith("its mask 1.png is 24 x 16 px")


def test_spreading_adds_how_much_each_place_attends_to_what_is_marked() -> None:
    """The formula, a place after the other."""
    generator = np.random.default_rng(5)
    mask, attention = generator.random((3, 4)), generator.random((12, 12)) ** 8
    attention /= attention.sum(1, keepdims=True)
    found = spread(torch.from_numpy(mask)[None], torch.from_numpy(attention))
    marked = mask.ravel()
    wanted = [sum(attention[i, j] * marked[j] for j in range(12)) - marked.mean() + marked[i] for i in range(12)]
    assert found.shape == (1, 3, 4)
    assert min(wanted) < 0
    assert max(wanted) > 1
    np.testing.assert_allclose(found[0].numpy().ravel(), np.clip(wanted, 0, 1), atol=1e-12)


@pytest.mark.parametrize(
    ("size", "places"), [((64, 48), (8, 6)), ((61, 45), (8, 6)), ((1200, 900), (64, 48)), ((4, 90), (1, 11))]
)
def test_a_mask_is_spread_at_the_size_of_latents_and_comes_back_at_its_images(
    size: tuple[int, int], places: tuple[int, int]
) -> None:
    model, seen = TinyModel(), []
    attend = model.image_attention
    model.image_attention = lambda pixels: seen.append(pixels) or attend(pixels)
    mask = Image.linear_gradient("L").resize((size[0] * 2, size[1] * 2))
    found = spread_mask(model, gradient(*size), mask)
    assert (found.mode, found.size) == ("L", size)
    assert seen[0].shape == (1, 3, 8 * places[1], 8 * places[0])
    assert seen[0].min() >= -1
    assert seen[0].max() <= 1


def test_a_spread_mask_reaches_what_looks_like_what_was_marked() -> None:
    """Two red fields on blue, of which half of one is marked."""
    image = Image.new("RGB", (64, 64), "blue")
    for left in (0, 48):
        image.paste("red", (left, 0, left + 16, 64))
    mask = Image.new("L", image.size)
    mask.paste(255, (0, 0, 16, 32))
    found = np.asarray(spread_mask(TinyModel(), image, mask)) / 255
    assert found[4:28, 4:12].min() > 0.95
    # Of red a quarter is marked, of all an eighth.
    assert found[40:, 52:60] == pytest.approx(0.25 - 0.125, abs=0.02)
    assert found[:, 24:40].max() < 0.02


def masked(folder: Path, mask: str = "a_att.png") -> Image.Image:
    """An image with one, which is given back."""
    folder.mkdir(exist_ok=True)
    image = Image.new("RGB", (64, 64), "blue")
    image.paste("red", (0, 0, 32, 64))
    image.save(folder / "a.jpg", quality=95)
    painted = Image.new("L", (64, 64))
    painted.paste(255, (0, 0, 16, 64))
    painted.save(folder / mask)
    return painted


@pytest.mark.parametrize("name", ["a_att.png", "a_att.bmp", "a_att.PNG", "a-masklabel.png"])
def test_the_masks_of_a_folder_are_spread_once_and_what_they_were_is_kept(name: str, tmp_path: Path) -> None:
    masked(tmp_path, name)
    before, told = (tmp_path / name).read_bytes(), []
    (spread_file,) = spread_folder(tmp_path, TinyModel, told.append)
    assert (spread_file.suffix.lower(), told) == (".png", [])
    assert masks_beside(tmp_path) == {"a": spread_file}
    kept = f"{spread_file.stem}.unspread"
    assert (tmp_path / kept).read_bytes() == before
    now = spread_file.read_bytes()
    assert np.asarray(Image.open(spread_file))[32, 24] > 40  # red, and not marked
    assert list(spread_folder(tmp_path, TinyModel, told.append)) == []
    assert told == [f"{spread_file.name} was spread before: {kept} is what it was."]
    assert spread_file.read_bytes() == now
    assert list(spread_folder(tmp_path, TinyModel, told.append, again=True)) == [spread_file]
    assert (tmp_path / kept).read_bytes() == before
    assert (tmp_path / f"{spread_file.stem}-2.unspread").read_bytes() == now
    assert load_dataset(tmp_path, TinyModel(), AS_IT_IS, PROMPTER, DatasetOptions(seed=1)).items[0].has_mask
    assert len(list(tmp_path.iterdir())) == 4


def test_a_mask_that_cannot_be_spread_stays_as_it_is(tmp_path: Path) -> None:
    masked(tmp_path)
    for stem in "bcd":
        Image.new("RGB", (64, 32)).save(tmp_path / f"{stem}.png")
    (tmp_path / "b_att.png").write_bytes(b"no image")
    Image.new("L", (64, 64)).save(tmp_path / "c_att.png")
    for ending in ("png", "webp"):
        Image.new("L", (64, 32)).save(tmp_path / f"d_att.{ending}")
    before, told = {path.name: path.read_bytes() for path in tmp_path.glob("[bcd]*")}, []
    assert [path.name for path in spread_folder(tmp_path, TinyModel, told.append)] == ["a_att.png"]
    assert {path.name: path.read_bytes() for path in tmp_path.glob("[bcd]*")} == before
    assert [each.split(" stays as it is: ")[0] for each in told] == ["b_att.png", "c_att.png", "d_att.webp"]
    assert "expected the aspect ratio of 64 x 32 px" in told[1]
    assert "d_att.png is there besides" in told[2]


def test_a_folder_without_masks_has_none_to_spread(tmp_path: Path) -> None:
    solid(tmp_path / "a", 1)
    with pytest.raises(DatasetError, match="There are no masks"):
        list(spread_folder(tmp_path / "a", TinyModel, print))
