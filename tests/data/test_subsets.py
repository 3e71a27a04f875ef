"""Data sets of several folders, as kohya's trainers write them down, and as we do."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from ti_trainer.data.subsets import Subset, checked_subsets, read_subsets, write_subsets
from ti_trainer.errors import ConfigError, DatasetError

KOHYA = Path(__file__).parents[1] / "fixtures" / "kohya"


def written(folder: Path, text: str, name: str = "set.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def subset(**keys: object) -> str:
    """A file with one subset."""
    lines = [f"{key} = {value if key == 'custom_attributes' else json.dumps(value)}" for key, value in keys.items()]
    return "[[datasets]]\n[[datasets.subsets]]\n" + "\n".join(lines)


def test_a_folder_is_one_subset_whatever_it_is_called(tmp_path: Path) -> None:
    assert read_subsets(tmp_path) == (Subset(tmp_path),)
    folder = tmp_path / "images.toml"
    folder.mkdir()
    assert read_subsets(folder) == (Subset(folder),)
    assert read_subsets(tmp_path / "nowhere") == (Subset(tmp_path / "nowhere"),)  # who looks for images says so


def test_a_file_of_kohyas_is_read_with_what_each_level_says() -> None:
    told: list[str] = []
    assert read_subsets(KOHYA / "dreambooth.toml", told.append) == (
        Subset(KOHYA / "thing", 3, 1.0, ".caption", "sks toy", "best quality,"),
        Subset(KOHYA / "rare", 10, 1.0, ".txt", "", "best quality,", "from above"),
        Subset(KOHYA / "class", 1, 1.0, ".caption", "toy", "best quality,", is_reg=True),
        Subset(KOHYA / "more", 2, 0.5, ".caption"),
    )
    instead, unknown = told
    for key, label in (("resolution", "Width, Height"), ("batch_size", "Batch size"), ("enable_bucket", "Use aspect-ratio")):
        assert f"{key}: {label}" in instead
    assert "shuffle_caption: " in instead
    assert "--" not in instead  # the page shows it, too
    assert unknown == "Keys of dreambooth.toml that are not used: keep_tokens, flip_aug."


def test_folders_of_masks_and_json_are_read_too() -> None:
    assert read_subsets(KOHYA / "masks.toml") == (Subset(KOHYA / "thing", masks=KOHYA / "masks"),)
    found = read_subsets(KOHYA / "dreambooth.json")
    assert found == (Subset(KOHYA / "thing", 5), Subset(KOHYA / "class", is_reg=True))


def test_what_is_switched_off_or_empty_is_not_warned_of(tmp_path: Path) -> None:
    told: list[str] = []
    read_subsets(written(tmp_path, subset(image_dir="a", flip_aug=False, keep_tokens=0, shuffle_caption=False)), told.append)
    assert told == []


def test_a_loss_weight_in_the_wrong_place_is_told_the_right_one(tmp_path: Path) -> None:
    told: list[str] = []
    (found,) = read_subsets(written(tmp_path, subset(image_dir="a", loss_weight=2)), told.append)
    assert found.weight == 1
    assert "Put loss_weight into custom_attributes" in told[0]


def test_a_subset_without_repeats_is_left_out_as_kohya_does(tmp_path: Path) -> None:
    told: list[str] = []
    text = subset(image_dir="a", num_repeats=0) + '\n[[datasets.subsets]]\nimage_dir = "b"\n'
    assert read_subsets(written(tmp_path, text), told.append) == (Subset(tmp_path / "b"),)
    assert told == ["set.toml: subset 1 is left out, since its num_repeats is 0."]
    with pytest.raises(DatasetError, match="lists no folder"):
        read_subsets(written(tmp_path, subset(image_dir="a", num_repeats=0)))


ALL = Subset(Path("/ä b"), 7, 0.25, ".caption", 'a "b"\\ \t\x7f[name]', "pre,", "post", Path("/masks/ü"), is_reg=True)


@pytest.mark.parametrize(
    "subsets", [(Subset(Path("/a")),), (ALL,), (Subset(Path("/a")), ALL, Subset(Path("/b"), 2)), (ALL, ALL)]
)
def test_what_is_written_is_read_again(tmp_path: Path, subsets: tuple[Subset, ...]) -> None:
    told: list[str] = []
    path = tmp_path / "set.toml"
    absolute = tuple(subsets)
    write_subsets(path, absolute)
    assert read_subsets(path, told.append) == absolute
    assert told == []


def test_kohya_finds_no_key_in_what_is_written_that_it_refuses(tmp_path: Path) -> None:
    """Its schema as of February 2026: what a subset of images, and one of images with masks, may have."""
    plain = {"image_dir", "num_repeats", "caption_extension", "class_tokens", "caption_prefix", "caption_suffix", "is_reg",
             "custom_attributes"}  # fmt: skip
    masked = plain - {"class_tokens", "is_reg"} | {"conditioning_data_dir"}
    path = tmp_path / "set.toml"
    subsets = (
        Subset(Path("/a"), 2, 0.5, ".caption", "toy", "pre", "post", is_reg=True),
        Subset(Path("/b"), 2, 0.5, ".caption", "", "pre", "post", Path("/m")),
    )
    write_subsets(path, subsets)
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    assert set(content) == {"datasets"}
    first, second = content["datasets"]  # kohya reads masks only where all subsets of a dataset have some
    assert set(first) == set(second) == {"subsets"}
    assert set(first["subsets"][0]) == plain
    assert set(second["subsets"][0]) == masked


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("datasets = [", "set.toml cannot be read"),
        ("x = 1", r"found no \[\[datasets\]\]"),
        ("datasets = 3", r"found no \[\[datasets\]\]"),
        ("datasets = [3]", "found 3, expected a table"),
        ("general = 3", "general: found 3, expected a table"),
        ("[[datasets]]", r"found no \[\[datasets.subsets\]\]"),
        (subset(num_repeats=2), "subset 1: found no image_dir"),
        (subset(image_dir=3), "subset 1: image_dir: found 3, expected the path"),
        (subset(image_dir=" "), "subset 1: image_dir: found ' ', expected the path"),
        (subset(image_dir="a", conditioning_data_dir=True), "conditioning_data_dir: found True, expected the path"),
        (subset(image_dir="a", conditioning_data_dir="a"), "expected another folder than that of the images"),
        (subset(image_dir="a", num_repeats="many"), "subset 1: num_repeats: found 'many', expected a whole number"),
        (subset(image_dir="a", num_repeats=1.5), "num_repeats: found 1.5, expected a whole number"),
        (subset(image_dir="a", num_repeats=True), "num_repeats: found True, expected a whole number"),
        (subset(image_dir="a", num_repeats=10_001), "expected a whole number from 1 to 10000"),
        (subset(image_dir="a", is_reg=1), "is_reg: found 1, expected true or false"),
        (subset(image_dir="a", class_tokens=1), "class_tokens: found 1, expected a text"),
        (
            subset(image_dir="a", caption_extension="txt"),
            "found 'txt', expected the end of a file's name",
        ),
        (subset(image_dir="a", caption_extension="/../b.txt"), "caption_extension: found"),
        (subset(image_dir="a", caption_extension="\\..\\b.txt"), "caption_extension: found"),
        (subset(image_dir="a", custom_attributes="3"), "custom_attributes of subset 1: found 3, expected a table"),
        (subset(image_dir="a", custom_attributes="{loss_weight = 0}"), "loss_weight: found 0, expected a number above 0"),
        (subset(image_dir="a", custom_attributes="{loss_weight = nan}"), "loss_weight: found nan"),
        (subset(image_dir="a", custom_attributes="{loss_weight = '2'}"), "loss_weight: found '2'"),
    ],
)
def test_what_cannot_be_is_refused_with_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DatasetError, match=said) as caught:
        read_subsets(written(tmp_path, text))
    assert "set.toml" in str(caught.value)


@pytest.mark.parametrize(("name", "content"), [("a.toml", b"\xff\xfe"), ("a.json", b"{"), ("a.json", b"[" * 100_000)])
def test_a_file_that_is_none_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=f"{name} cannot be read"):
        read_subsets(tmp_path / name)
    with pytest.raises(DatasetError, match=r"gone\.toml does not exist"):
        read_subsets(tmp_path / "gone.toml")


def test_without_a_package_for_toml_its_name_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tomllib", None)
    monkeypatch.setitem(sys.modules, "tomli", None)
    with pytest.raises(ConfigError, match="-m pip install tomli"):
        read_subsets(KOHYA / "masks.toml")


def test_every_folder_and_mask_folder_is_checked() -> None:
    seen: list[Path] = []
    checked_subsets(KOHYA / "masks.toml", seen.append)
    assert seen == [KOHYA / "thing", KOHYA / "masks"]

    def refuse(path: Path) -> Any:
        if path.name == "masks":
            raise ConfigError(str(path))

    with pytest.raises(ConfigError, match="masks"):
        checked_subsets(KOHYA / "masks.toml", refuse)


def images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_folders_of_kohyas_with_repeats_in_their_names_are_subsets(tmp_path: Path) -> None:
    images(
        tmp_path, "10_sks star/a.png", "10_sks star/b.png", "2_sks_star closeup/a.jpg", ".3_hidden/a.png", "4_empty/a.txt"
    )
    told: list[str] = []
    assert read_subsets(tmp_path, told.append) == (
        Subset(tmp_path / "10_sks star", 10, class_tokens="sks star"),
        Subset(tmp_path / "2_sks_star closeup", 2, class_tokens="sks_star closeup"),
    )
    assert told == [
        "10_sks star: 2 images, 10 repeats. Images without a caption file get the caption 'sks star'.",
        "2_sks_star closeup: 1 image, 2 repeats. Images without a caption file get the caption 'sks_star closeup'.",
    ]


def test_what_lies_beside_them_is_told(tmp_path: Path) -> None:
    images(tmp_path, "10_sks star/a.png", "5_reg/a.png", "1_reg star/a.png", "0_off/a.png", "old/a.png", "2_regal cat/a.png")
    images(tmp_path, "sample.mp4", "20240501_party/a.png", "2024_rome/a.png", "12_24/a.png")
    told: list[str] = []
    assert [each.folder.name for each in read_subsets(tmp_path, told.append)] == ["10_sks star", "2_regal cat"]
    said = " ".join(told[2:])
    for part in ("5_reg is not used", "1_reg star is not used", "is_reg = true", "0_off is not used", "1 .mp4"):
        assert part in said
    assert "used: 12_24 (1 image), 20240501_party (1 image), 2024_rome (1 image), old (1 image)." in said


def test_a_project_of_kohyas_is_told_which_of_its_folders_is_the_dataset(tmp_path: Path) -> None:
    images(tmp_path, "img/10_sks star/a.png", "log/x.txt")
    with pytest.raises(DatasetError, match=f"Choose {re.escape(str(tmp_path / 'img'))} as the dataset"):
        read_subsets(tmp_path)


@pytest.mark.parametrize("name", ["00010_x", "10 _x", "10-x", "100000_x", "10 x"])
def test_folders_whose_names_nearly_say_how_often_are_told_how_to_be_named(tmp_path: Path, name: str) -> None:
    images(tmp_path, f"{name}/a.png", "20240501_party/a.png")
    with pytest.raises(
        DatasetError, match=f"itself. {name} is not used\\. If .* rename the folder to '10_x': up to 4 digits"
    ):
        read_subsets(tmp_path)
    images(tmp_path, "5_sks/a.png")
    told: list[str] = []
    assert [each.folder.name for each in read_subsets(tmp_path, told.append)] == ["5_sks"]
    assert sum("is not used. If its number" in each for each in told) == 1


def test_loose_images_are_the_dataset_and_folders_beside_them_are_not(tmp_path: Path) -> None:
    images(tmp_path, "10_sks star/a.png", "a.png")
    assert read_subsets(tmp_path) == (Subset(tmp_path),)  # a look at it says that the folder is not used


def test_the_home_folder_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "me"))
    path = written(tmp_path, subset(image_dir="~/pics", conditioning_data_dir="~/masks"))
    assert read_subsets(path) == (Subset(tmp_path / "me" / "pics", masks=tmp_path / "me" / "masks"),)


@pytest.mark.parametrize("path", ["C:\\Users\\me\\pics", "D:\\new\\test", "\\\\server\\share"])
@pytest.mark.parametrize("name", ["set.toml", "set.json"])
def test_backslashes_in_double_quotes_are_named_as_the_cause(tmp_path: Path, path: str, name: str) -> None:
    text = f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "{path}"\n'
    if name.endswith(".json"):
        text = f'{{"datasets": [{{"subsets": [{{"image_dir": "{path}"}}]}}]}}'
    with pytest.raises(DatasetError, match=r"a backslash in double quotes.*Write slashes: \"") as caught:
        read_subsets(written(tmp_path, text, name))
    assert ("single quotes" in str(caught.value)) == name.endswith(".toml")


def test_backslashes_in_single_quotes_or_doubled_are_right(tmp_path: Path) -> None:
    single = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'C:\\me\\pics'\n"
    assert str(read_subsets(written(tmp_path, single))[0].folder).endswith("C:\\me\\pics")
    with pytest.raises(DatasetError, match="expected a dataset as kohya"):  # what is wrong is something else
        read_subsets(written(tmp_path, single.replace("'", '"').replace("\\", "\\\\") + "x = ["))


def test_what_is_put_around_a_caption_is_one_by_itself() -> None:
    around = Subset(Path("/a"), caption_prefix="a", caption_suffix="b")
    assert [around.captioned(text) for text in ("toy", "", None)] == ["a toy b", "a b", "a b"]
    assert [Subset(Path("/a")).captioned(text) for text in ("toy", "", None)] == ["toy", "", None]
