"""Preflight: facts and warnings about images, captions and prompts before a run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import D, TinyModel
from PIL import Image

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.images import Frame
from ti_trainer.data.loading import load_dataset
from ti_trainer.data.preflight import BEGINNING, PROMPTS, Preflight, preflight, same_files
from ti_trainer.data.preflight_warnings import about_prompts
from ti_trainer.data.prompts import Prompter
from ti_trainer.data.subsets import Subset, read_subsets
from ti_trainer.errors import ConfigError, DatasetError
from ti_trainer.prompts import CHUNK, Splice, TokenizedPrompt

Images = Callable[..., Path]
VECTORS = {"clip_l": torch.zeros(2, D)}
GOOD = ((16, 16),) * 5  # TinyModel is made for 16 px


CAPTIONED = ("a photo of [name], [filewords]",)


def looked(folder: Path, template: tuple[str, ...] = CAPTIONED, plain: tuple[str, ...] = (), **options: Any) -> Preflight:
    config = TrainConfig(**options)
    prompter = Prompter("x-word", template, config.shuffle_tags, config.tag_dropout, plain=plain)
    about: list[str] = []
    found = preflight(read_subsets(folder, about.append), prompter, config, TinyModel(), VECTORS, thumbnails=10)
    return replace(found, warnings=(*about, *found.warnings))


def prompts_of(found: Preflight) -> set[str]:
    return {prompt for prompt, _ in found.prompts}


def noise(path: Path, width: int = 16, height: int = 16, seed: int = 0, **options: Any) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def test_nothing_is_warned_of_in_a_good_dataset(images: Images) -> None:
    found = looked(images(*GOOD))
    assert found.warnings == ()
    assert (found.count, found.captioned, found.unreadable, found.unreadable_warnings) == (5, 5, (), [])
    assert found.sizes == [((16, 16), 5)]


def test_sizes_are_of_images_held_upright_the_most_frequent_first(images: Images) -> None:
    folder = images((24, 16), (16, 24), (32, 32))
    lying = Image.Exif()
    lying[0x0112] = 6
    noise(folder / "lying.jpg", 24, 16, exif=lying)
    found = looked(folder, do_not_resize=True)
    assert found.sizes == [((16, 24), 2), ((24, 16), 1), ((32, 32), 1)]
    assert found.thumbnails[3][0].size == (16, 24)


def test_thumbnails_are_small_and_have_their_captions(images: Images) -> None:
    folder = images((800, 400), *GOOD)
    (folder / "1.txt").unlink()
    (folder / "1.png").rename(folder / "012-a cat.png")
    Image.new("RGBA", (16, 16), (255, 0, 0, 128)).save(folder / "x.png")
    Image.fromarray(np.full((16, 16), 40_000, np.uint16)).save(folder / "y.png")
    found = looked(folder)
    assert [caption for _, caption in found.thumbnails[:2]] == ["red, round, small", "a cat"]
    assert [thumbnail.size for thumbnail, _ in found.thumbnails[:2]] == [(192, 96), (16, 16)]
    assert {thumbnail.mode for thumbnail, _ in found.thumbnails} == {"RGB"}
    assert len(found.thumbnails) == found.count == 8
    assert found.thumbnails[7][0].getpixel((3, 3)) == (155, 155, 155)  # 16 bits, as it is trained on
    assert found.captioned == 5


def test_thumbnails_are_of_the_first_images_only(images: Images) -> None:
    found = looked(images(*[(16, 16)] * 12))
    assert (found.count, len(found.thumbnails)) == (12, 10)


def test_images_that_cannot_be_read_are_named_with_the_reason(images: Images) -> None:
    folder = images(*GOOD)
    (folder / "0.png").write_bytes(b"no image")
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:60])
    found = looked(folder)
    assert [name for name, _ in found.unreadable] == ["0.png", "1.png"]
    assert all(reason for _, reason in found.unreadable)
    assert (found.count, len(found.thumbnails), found.captioned) == (5, 3, 3)
    assert found.unreadable_warnings[0].startswith(
        "0.png cannot be read and will be skipped (it is not an image, or damaged)"
    )


def test_of_many_unreadable_images_some_are_named_and_the_rest_counted(images: Images) -> None:
    folder = images(*GOOD)
    for number in range(7):
        (folder / f"broken {number}.png").touch()
    warnings = looked(folder).unreadable_warnings
    assert [f"broken {number}.png cannot be read" in warnings[number] for number in range(5)] == [True] * 5
    assert warnings[5:] == ["2 more images cannot be read."]


def test_a_folder_of_nothing_readable_has_no_prompts(tmp_path: Path) -> None:
    (tmp_path / "broken.png").touch()
    found = looked(tmp_path)
    assert (found.sizes, found.thumbnails, found.prompts) == ([], (), ())
    assert (len(found.unreadable_warnings), found.warnings) == (1, ())


def test_an_empty_folder_and_a_caption_that_is_no_text_are_errors_as_in_a_run(tmp_path: Path, images: Images) -> None:
    with pytest.raises(DatasetError, match="no images"):
        looked(tmp_path)
    folder = images(*GOOD)
    (folder / "2.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DatasetError, match=r"2\.txt is not UTF-8"):
        looked(folder)


def test_prompts_are_shown_as_they_will_be_fed(images: Images) -> None:
    folder, template = images(*GOOD), ("a photo of [name], [filewords]", "[filewords] [name]")
    found = looked(folder, template, shuffle_tags=True, tag_dropout=0.3, seed=5)
    assert len(found.prompts) == PROMPTS
    texts = [prompt for prompt, _ in found.prompts]
    assert {text.startswith("a photo of x-word, ") for text in texts} == {True, False}  # each line of the template
    assert not all(tags in text for text, tags in zip(texts, [caption for _, caption in found.thumbnails] * 2, strict=True))
    for text, tokenized in found.prompts:
        (chunk,), (place,) = tokenized.chunks, tokenized.splices
        words_before = text.split("x-word")[0].replace(",", "").split()
        assert place == Splice(0, 1 + len(words_before), "x-word")
        assert len(chunk) == CHUNK + 2
        assert chunk[place.offset : place.offset + 2] == (0, 0)  # room for two vectors
    assert looked(folder, template, shuffle_tags=True, tag_dropout=0.3, seed=5).prompts == found.prompts
    assert looked(folder, template, shuffle_tags=True, tag_dropout=0.3, seed=6).prompts != found.prompts


def test_duplicates_are_files_of_the_same_content(tmp_path: Path) -> None:
    content = {"a": b"one", "b": b"two", "c": b"one", "d": b"three", "e": b"one", "f": b"two"}
    paths = [tmp_path / name for name in content]
    for path in paths:
        path.write_bytes(content[path.name])
    assert [[path.name for path in same] for same in same_files(paths)] == [["a", "c", "e"], ["b", "f"]]
    assert same_files(paths[:2]) == []  # of the same length


def test_files_that_begin_differently_are_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 2 * BEGINNING
    content = {"a": b"1" * size, "b": b"2" * size, "c": b"3" * size, "d": b"3" * size, "e": b"3" * (size - 1) + b"4"}
    paths = [tmp_path / name for name in content]
    for path in paths:
        path.write_bytes(content[path.name])
    read: list[int] = []
    sha256 = hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda content: read.append(len(content)) or sha256(content))
    assert same_files(paths) == [[tmp_path / "c", tmp_path / "d"]]
    assert read == [BEGINNING] * 5 + [size] * 3


def test_the_same_image_several_times_is_warned_of(images: Images) -> None:
    folder = images(*GOOD)
    (folder / "copy.png").write_bytes((folder / "3.png").read_bytes())
    (folder / "copy.txt").write_text("a copy")
    (warning,) = looked(folder).warnings
    assert "the same image: 3.png, copy.png." in warning


@pytest.mark.parametrize(
    ("sizes", "options", "warning"),
    [
        (((8, 8), *GOOD), {}, "1 image is smaller than 16 x 16 px and will be upscaled; the embedding may learn the blur."),
        (((8, 8), *GOOD), {"width": 8, "height": 8}, None),
        (((8, 8), *GOOD), {"do_not_resize": True}, None),
        (GOOD, {"width": 24, "height": 24}, "5 images are smaller than 24 x 24 px"),
        (((32, 24), (24, 32), *GOOD), {}, "2 images have another aspect ratio than 16 x 16 px"),
        (((32, 24), (24, 32), *GOOD), {"do_not_resize": True}, None),
        (((101, 100), *GOOD), {}, None),  # nobody misses half a pixel
        (GOOD[:2], {}, "Only 2 images: with fewer than 3"),
        (GOOD[:1], {}, "Only 1 image: with fewer than 3"),
        (GOOD[:3], {}, None),
        (((16, 16),) * 201, {}, "201 images: 5 to 30 good ones"),
        (((16, 16),) * 200, {}, None),
        (GOOD, {"batch_size": 6}, "The batch size 6 is larger than the dataset"),
        (GOOD, {"batch_size": 6, "repeats": 2}, None),
        (GOOD, {"batch_size": 5}, None),
    ],
)
def test_what_is_wrong_with_images_is_warned_of(
    images: Images, sizes: tuple[tuple[int, int], ...], options: dict[str, Any], warning: str | None
) -> None:
    warnings = looked(images(*sizes), **options).warnings
    assert len(warnings) == (warning is not None), warnings
    assert warnings == () or warnings[0].startswith(warning)


def test_captions_that_are_missing_or_not_used_are_warned_of(images: Images) -> None:
    folder = images(*GOOD)
    (warning,) = looked(folder, ("[name]",)).warnings
    assert warning.startswith("5 images have a caption, but captions are not used")
    for path in list(folder.glob("[0-3].txt")):
        path.unlink()
    assert [warning[:26] for warning in looked(folder).warnings] == ["4 images have no .txt file"]
    (folder / "4.txt").unlink()
    assert looked(folder, ("[name]",)).warnings == ()


def test_prompts_that_are_too_long_for_one_part_are_warned_of(images: Images) -> None:
    folder = images(*GOOD)
    (folder / "2.txt").write_text("word " * (CHUNK - 5))  # a photo of and two vectors
    assert looked(folder).warnings == ()
    (folder / "2.txt").write_text("word " * (CHUNK - 4))
    (warning,) = looked(folder).warnings
    assert "longer than 75 tokens" in warning
    assert ": 'a photo of x-word, word word" in warning


def test_a_word_whose_vectors_stay_behind_is_warned_of_by_its_name() -> None:
    astray = TokenizedPrompt(((1, *range(2, CHUNK + 3)),), (Splice(0, CHUNK, "x-word"),))
    (warning,) = about_prompts([("a prompt", astray)])
    assert warning.startswith("x-word is at the 75-token limit of the prompt.")


def test_a_word_that_another_one_swallows_is_warned_of(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenize = TinyModel.tokenize
    monkeypatch.setattr(TinyModel, "tokenize", lambda self, prompt, words: tokenize(self, prompt, {}))
    (warning,) = looked(images(*GOOD)).warnings
    assert "does not contain the embedding" in warning


def test_with_buckets_their_numbers_are_told_and_shapes_are_not_complained_of(images: Images) -> None:
    folder = images((330, 200), (200, 330), (256, 256), (330, 210), (260, 260))
    found = looked(folder, width=256, height=256, buckets=True)
    assert found.buckets == [((320, 192), 2), ((256, 256), 2), ((192, 320), 1)]
    assert found.warnings == ()
    assert looked(folder, width=256, height=256).buckets == []


def test_a_bucket_with_less_than_a_batch_and_what_no_bucket_can_hold_are_warned_of(images: Images) -> None:
    folder = images((1800, 200), (256, 256), (256, 256), (256, 256))
    few, cut = looked(folder, width=256, height=256, buckets=True, batch_size=3).warnings[::-1]
    assert "fewer images than the batch size 3 (1 of " in few
    assert cut.startswith("1 image has a more extreme aspect ratio than any bucket")
    assert len(looked(folder, width=256, height=256, buckets=True, batch_size=3, repeats=3).warnings) == 1


def test_several_folders_are_looked_at_as_they_will_be_fed(images: Images, tmp_path: Path) -> None:
    thing, kind = images(*GOOD), images(*GOOD[:2])
    for path in thing.glob("*.txt"):
        path.rename(path.with_suffix(".caption"))
    text = f"""
        [general]
        resolution = 768
        [[datasets]]
        [[datasets.subsets]]
        image_dir = {str(thing)!r}
        caption_extension = ".caption"
        num_repeats = 2
        [[datasets.subsets]]
        image_dir = {str(kind)!r}
        caption_extension = ".none"
        class_tokens = "[name] toy"
        is_reg = true
    """
    (tmp_path / "set.toml").write_text(text)
    found = looked(tmp_path / "set.toml")
    assert (found.count, found.folders, found.captioned) == (7, 2, 5)
    assert [prompt for prompt, _ in found.prompts[5:7]] == ["x-word toy", "x-word toy"]
    assert found.prompts[0][0].startswith("a photo of x-word, ")
    instead, unread, same, again = found.warnings
    assert unread == f"{kind.name}: Not used, because captions of this dataset end with .none: 0.txt, 1.txt."
    assert "resolution: Width, Height" in instead
    assert f"the same image: {thing.name}/0.png, {kind.name}/0.png." in same
    assert f"{kind.name}/1.png." in again
    (thing / "0.caption").unlink()
    assert any("1 image has no .caption file" in warning for warning in looked(tmp_path / "set.toml").warnings)
    (tmp_path / "set.toml").write_text(text.replace("[name] toy", "a toy"))
    assert any("Not used: 2 regularisation images." in each for each in looked(tmp_path / "set.toml").warnings)


def named(folder: Path, *stems: str, ending: str = "") -> Path:
    """The images of the folder under these names, with caption files of this ending, if any."""
    for number, stem in enumerate(stems):
        (folder / f"{number}.png").rename(folder / f"{stem}.png")
        caption = folder / f"{number}.txt"
        caption.rename(folder / f"{stem}{ending}") if ending else caption.unlink()
    return folder


def test_names_of_cameras_are_no_captions_and_that_is_said(images: Images) -> None:
    folder = named(images(*GOOD[:3]), "IMG_2031", "DSC0001", "photo (3)")
    found = looked(folder)
    assert prompts_of(found) == {"a photo of x-word"}
    (warning,) = found.warnings
    assert warning == (
        "3 images have no .txt file; they use prompts without [filewords]. To use file names as captions, set Filename word "
        "regex (.+ for the whole name)."
    )
    assert found.captioned == 0


def test_names_that_say_something_are_captions_only_in_a_template_that_has_no_other_one(images: Images) -> None:
    folder = named(images(*GOOD[:3]), "10_red hat_01", "10_red hat_02", "IMG_1")
    own = looked(folder)
    assert prompts_of(own) == {"a photo of x-word, red hat", "a photo of x-word"}
    nothing, by_name = own.warnings
    assert nothing.startswith("1 image has no .txt file; it uses prompts without [filewords].")
    assert "the file name is the caption, for example 'red hat'" in by_name
    shipped = looked(folder, plain=("the [name]",))
    assert prompts_of(shipped) == {"the x-word"}
    (warning,) = shipped.warnings
    assert "3 images have no .txt file; they use the template 'subject'. To use file names" in warning


def test_names_are_captions_where_a_regular_expression_asks_for_them(images: Images) -> None:
    folder = named(images(*GOOD[:3]), "IMG_1", "IMG_2", "IMG_3")
    found = looked(folder, plain=("the [name]",), filename_word_regex=".+")
    assert prompts_of(found) == {f"a photo of x-word, IMG_{number}" for number in (1, 2, 3)}
    assert found.warnings == ("3 images have no .txt file; the file name is the caption, for example 'IMG_1'.",)


@pytest.mark.parametrize("ending", [".caption", ".TXT", ".Caption", ".png.txt"])
def test_captions_of_other_programs_are_read(images: Images, ending: str) -> None:
    found = looked(named(images(*GOOD[:3]), "a", "b", "c", ending=ending))
    assert (found.captioned, found.warnings) == (3, ())
    assert "a photo of x-word, red, round, small" in prompts_of(found)


def test_of_two_caption_files_the_txt_counts_and_that_is_said(images: Images) -> None:
    folder = images(*GOOD)
    (folder / "0.caption").write_text("another")
    found = looked(folder)
    assert found.warnings == ("Not used, because their images have another caption file: 0.caption.",)
    assert "a photo of x-word, red, round, small" in prompts_of(found)


def test_what_else_lies_there_is_told(images: Images) -> None:
    folder = images(*GOOD)
    for name in ("a.cr2", "metadata.jsonl", "99.txt"):
        (folder / name).write_text("{}")
    said = " ".join(looked(folder).warnings)
    for part in ("1 .cr2 file", "metadata.jsonl", "Captions without an image of the same name are not used: 99.txt"):
        assert part in said


def test_captions_that_have_the_word_already_are_told_of(images: Images) -> None:
    folder = images(*GOOD)
    for number in range(3):
        (folder / f"{number}.txt").write_text("X-Word, at sunset" if number else "a [name]")
    (warning,) = looked(folder).warnings
    assert warning.startswith("3 of 5 captions contain x-word ('a [name]'), and the template adds it again")
    (folder / "3.txt").write_text("x-words, ax-word")  # other words
    assert looked(folder).warnings[0].startswith("3 of 5")


def test_captions_may_be_whole_prompts_if_all_have_the_word(images: Images) -> None:
    folder = images(*GOOD[:3])
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"x-word {number}")
    found = looked(folder, ("[filewords]",))
    assert (found.warnings, prompts_of(found)) == ((), {"x-word 0", "x-word 1", "x-word 2"})
    (folder / "1.txt").write_text("a hat")
    with pytest.raises(
        ConfigError, match=r"line without \[name\].*caption of 1\.png does not contain x-word: 'a hat'"
    ) as caught:
        looked(folder, ("[filewords]",))
    assert caught.value.option == "template"
    (folder / "1.txt").unlink()
    assert "x-word" in prompts_of(looked(folder, ("[filewords]",)))  # an image without a caption has the word alone


def test_a_prompt_that_is_too_long_is_found_among_all(images: Images) -> None:
    folder = images(*[(16, 16)] * (PROMPTS + 5))
    (folder / "9.txt").write_text("word " * CHUNK)  # the last by name
    assert looked(folder).warnings[0].startswith("A prompt is longer than 75 tokens")


def test_transparent_images_are_counted_unless_alpha_says_how_much_they_count(images: Images) -> None:
    folder = images(*GOOD)
    for number, alpha in enumerate((0, 128, 255)):
        Image.new("RGBA", (16, 16), (number, 9, 9, alpha)).save(folder / f"{number}.png")
    assert looked(folder).warnings[0].startswith("2 images have transparent areas, which become white")
    assert looked(folder, use_alpha_weight=True).warnings == ()


def test_folders_with_repeats_in_their_names_are_looked_at_as_they_are_fed(images: Images) -> None:
    folder = images(*GOOD)
    for number, name in enumerate(("10_sks star", "2_old")):
        (folder / name).mkdir()
        for each in range(2 + number):
            (folder / f"{each + 2 * number}.png").rename(folder / name / f"{each}.png")
    found = looked(folder)
    assert (found.count, found.folders) == (5, 2)
    assert prompts_of(found) == {"a photo of x-word, sks star", "a photo of x-word, old"}
    assert "10_sks star: 2 images, 10 repeats" in found.warnings[0]


def test_what_training_reads_as_text_is_warned_of_and_what_cannot_be_read_is_refused(images: Images) -> None:
    folder = images(*GOOD)
    (folder / "2.txt").write_text(r"a (red:1.2) \(fate\) [a|b] <lora:x:1>")
    first, second = looked(folder).warnings
    assert first.startswith("[a|b] in the captions is read as plain text")
    assert second.startswith("<lora:x:1> in the captions is read as plain text")
    (folder / "2.txt").write_text("version (a:1.2.3)")
    with pytest.raises(DatasetError, match=r"The caption of 2\.png cannot be used.*found 1\.2\.3\)"):
        looked(folder)


def test_each_folder_is_listed_once(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, listed = images(*GOOD), list[Path]()
    for name in ("99_att.png", "more.png/a.png", "x.mp4"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    real = {name: getattr(os, name) for name in ("scandir", "listdir")}
    for name in real:
        monkeypatch.setattr(os, name, lambda path, name=name: listed.append(Path(path)) or real[name](path))
    subsets = (Subset(folder), Subset(folder, repeats=2))
    prompter, config = Prompter("x-word", CAPTIONED), TrainConfig()
    assert preflight(subsets, prompter, config, TinyModel(), VECTORS).warnings
    assert listed == [folder, folder / "more.png"]  # the subfolder for a warning that its images are not used
    listed.clear()
    load_dataset(subsets, TinyModel(), Frame(None), prompter)
    assert listed == [folder]
    listed.clear()
    read_subsets(folder)
    assert listed == [folder]
