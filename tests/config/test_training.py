"""Options: declared once, the same everywhere, and refused by name when they cannot be used."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ti_trainer.__main__ import build_parser
from ti_trainer.commands.train import config_of
from ti_trainer.config.options import Option
from ti_trainer.config.training import SECTIONS, TrainConfig, options, problems
from ti_trainer.errors import ConfigError

OPTIONS = {each.name: each for each in options()}
TEXTS = {
    **dict.fromkeys(("learning_rate", "clip_grad_limit", "train_cfg_scale", "trial_learning_rates"), "0.25"),
    "trial_vectors": "3",
}
NEEDED = {
    "opposite_prompt": {"teacher_prompt": "a star"},
    "teacher_negative_prompt": {"teacher_prompt": "a star"},
    "ema_every": {"ema_rate": 0.9},
    "lr_warmup_steps": {"max_steps": 2_000_000},
}  # by options that mean nothing alone


def another(option: Option) -> Any:
    """A value that is valid and not the default."""
    if option.type is bool:
        return not option.default
    if option.choices:
        return next(choice for choice in option.choices if choice != option.default)
    if option.type is str:
        return TEXTS.get(option.name, "something else")
    value = option.low if option.default != option.low else option.high
    return option.type(value)


def parsed(*flags: str) -> TrainConfig:
    return config_of(build_parser("train").parse_args(["train", "x-word", "--images", "images", *flags]))


def test_the_command_line_without_flags_is_the_defaults() -> None:
    assert parsed() == TrainConfig()


@pytest.mark.parametrize("option", OPTIONS.values(), ids=list(OPTIONS))
def test_every_option_has_a_flag_that_sets_it_and_nothing_else(option: Option) -> None:
    value = another(option)
    flags = [option.flag if value else f"--no-{option.flag[2:]}"] if option.type is bool else [option.flag, str(value)]
    needed = NEEDED.get(option.name, {})
    flags += [text for name, each in needed.items() for text in (OPTIONS[name].flag, str(each))]
    expected = {**TrainConfig().to_dict(), **needed, option.name: value}
    assert parsed(*flags).to_dict() == expected


@pytest.mark.parametrize("option", OPTIONS.values(), ids=list(OPTIONS))
def test_every_option_says_what_it_is(option: Option) -> None:
    assert option.section in SECTIONS
    assert option.label
    assert option.help.endswith(".")
    assert len(option.help.split()) > 2
    assert (option.low is not None and option.high is not None) == (option.type in (int, float))
    option.check(option.default)


def test_every_section_has_options() -> None:
    assert {each.section for each in OPTIONS.values()} == set(SECTIONS)


def test_labels_are_told_apart() -> None:
    assert len({each.label for each in OPTIONS.values()}) == len(OPTIONS)


EVERYTHING = {name: another(each) for name, each in OPTIONS.items()} | {
    "do_not_resize": False,
    "lr_warmup_steps": 0,
    "teacher_prompt": "",
    "opposite_prompt": "",
    "teacher_negative_prompt": "",
    "teacher_lora": "",
}  # ruled out by others
TEACHER = {"teacher_prompt": "a star", "opposite_prompt": "a circle"}


def test_the_opposite_of_a_prompt_is_another() -> None:
    with pytest.raises(ConfigError, match="expected its opposite") as refused:
        TrainConfig(**TEACHER | {"opposite_prompt": "a star "})
    assert refused.value.option == "opposite_prompt"


@pytest.mark.parametrize("config", [TrainConfig(), TrainConfig(**EVERYTHING), TrainConfig(**TEACHER)])
def test_settings_survive_their_file(config: TrainConfig) -> None:
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_option_that_is_not_saved_has_its_default() -> None:
    assert TrainConfig.from_dict({"max_steps": 7}) == TrainConfig(max_steps=7)


def test_options_that_do_not_exist_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"Unknown options: colour, momentum\. .*newer version"):
        TrainConfig.from_dict({"momentum": 0.9, "max_steps": 7, "colour": "red"})


@pytest.mark.parametrize(
    ("typed", "meant"), [("learning-rate", "learning_rate"), ("maxsteps", "max_steps"), ("Batch_Size", "batch_size")]
)
def test_a_name_like_an_options_is_told_which(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"{typed} \(did you mean {meant}\?\)\. Correct") as told:
        TrainConfig.from_dict({typed: 3})
    assert "newer version" not in str(told.value)


def wrong_values() -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, each in OPTIONS.items():
        found += [(name, None), (name, ["list"])]
        found += [(name, "not among them")] if each.choices else []
        found += [(name, "text")] if each.type is not str else [(name, 3)]
        found += [(name, 1.5), (name, True)] if each.type is int else []
        found += [(name, float("nan")), (name, float("inf")), (name, False)] if each.type is float else []
        found += [(name, 1)] if each.type is bool else []
        found += [(name, each.low - 1), (name, each.high + 1)] if each.low is not None and each.high is not None else []
    return found


@pytest.mark.parametrize(("name", "value"), wrong_values())
def test_what_an_option_cannot_be_is_refused_with_its_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"\({name}\): found .*, expected "):
        TrainConfig(**{name: value})


@pytest.mark.parametrize("option", [each for each in OPTIONS.values() if each.low is not None], ids=lambda each: each.name)
def test_bounds_are_inclusive(option: Option) -> None:
    for bound in (option.low, option.high):
        TrainConfig(**{**NEEDED.get(option.name, {}), option.name: option.type(bound)})


def test_a_whole_number_will_do_for_a_float() -> None:
    assert TrainConfig(preview_cfg_scale=3).preview_cfg_scale == 3


@pytest.mark.parametrize("side", ["width", "height"])
def test_sides_are_multiples_of_8(side: str) -> None:
    TrainConfig(**{side: 520})
    with pytest.raises(ConfigError, match=rf"\({side}\): found 516, expected a multiple of 8"):
        TrainConfig(**{side: 516})


@pytest.mark.parametrize("values", [{"learning_rate": "fast"}, {"clip_grad": "norm", "clip_grad_limit": "tight"}])
def test_schedules_are_read_at_once(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="schedule cannot be read"):
        TrainConfig(**values)


@pytest.mark.parametrize(("name", "value"), wrong_values())
def test_an_error_says_which_option_it_is_about(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**{name: value})
    assert caught.value.option == name


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("width", {"width": 12}),
        ("preview_height", {"preview_height": 9}),
        ("filename_word_regex", {"filename_word_regex": "("}),
        ("learning_rate", {"learning_rate": "fast"}),
        ("clip_grad_limit", {"clip_grad": "norm", "clip_grad_limit": "tight"}),
        ("buckets", {"buckets": True, "do_not_resize": True}),
    ],
)
def test_so_does_one_about_more_than_type_and_bounds(name: str, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**values)
    assert caught.value.option == name
    assert problems({**TrainConfig().to_dict(), **values}) == {name: str(caught.value)}


def test_nothing_is_wrong_with_the_defaults() -> None:
    assert problems({}) == problems(TrainConfig().to_dict()) == {}


WRONG = {"learning_rate": "fast", "tag_dropout": 2.0, "width": 12, "max_steps": 0, "template": None, "precision": "fp8"}


@pytest.mark.parametrize("names", [list(WRONG), list(reversed(WRONG))])
def test_all_problems_are_found_at_once_each_under_its_own_name(names: list[str]) -> None:
    found = problems({**TrainConfig().to_dict(), **{name: WRONG[name] for name in names}})
    assert set(found) == set(WRONG)
    for name, message in found.items():
        assert name in message or name == "learning_rate"
    assert "schedule cannot be read at 'fast'" in found["learning_rate"]
    assert set(problems({name: WRONG[name] for name in names})) == set(WRONG)  # whatever order they come in


def test_the_clipping_limit_counts_only_when_clipping_is_on() -> None:
    values = {**TrainConfig().to_dict(), "clip_grad_limit": "tight"}
    assert problems(values) == {}
    assert set(problems({**values, "clip_grad": "value"})) == {"clip_grad_limit"}
    assert set(problems({**values, "clip_grad": "sometimes"})) == {"clip_grad"}


def test_buckets_do_not_go_with_images_as_they_are_and_a_form_says_so() -> None:
    found = problems({**TrainConfig().to_dict(), "buckets": True, "do_not_resize": True})
    assert set(found) == {"buckets"}
    assert "Do not resize images" in found["buckets"]
    assert problems({"buckets": True}) == problems({"do_not_resize": True}) == {}


def test_an_ema_interval_needs_a_rate_and_a_form_says_so() -> None:
    TrainConfig(ema_rate=0.97, ema_every=25)
    assert problems({"ema_rate": 0.97, "ema_every": 25}) == {}
    assert "without an EMA rate" in problems({"ema_rate": 0.0, "ema_every": 25})["ema_every"]


def test_an_unknown_option_is_a_problem_of_its_own() -> None:
    assert set(problems({"colour": "red", "max_steps": 5})) == {"colour"}


def test_a_config_does_not_change() -> None:
    with pytest.raises(AttributeError):
        TrainConfig().seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("learning_rate", 0.0005, "0.0005"),
        ("learning_rate", 1e-05, "1e-05"),
        ("learning_rate", "0.005:10, 0.001", "0.005:10, 0.001"),
        ("clip_grad_limit", 1, "1"),
        ("train_cfg_scale", 3, "3"),
        ("max_steps", 300.0, 300),
        ("max_steps", "300", 300),
        ("max_steps", "３００", 300),
        ("tag_dropout", "0.5", 0.5),
        ("tag_dropout", 1, 1),
        ("seed", str(2**32 - 1), 2**32 - 1),
    ],
)
def test_numbers_in_a_settings_file_are_numbers(name: str, value: object, expected: object) -> None:
    assert getattr(TrainConfig.from_dict({name: value}), name) == expected


def test_lists_of_trials_may_be_lists() -> None:
    config = TrainConfig.from_dict({"trials": 2, "trial_learning_rates": [0.005, "0.01:5, 0.001"], "trial_vectors": [1, 2]})
    assert (config.trial_learning_rates, config.trial_vectors) == ("0.005; 0.01:5, 0.001", "1; 2")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("learning_rate", each)
            for each in (True, None, [], {}, float("nan"), float("inf"), -0.005, 0, "0", "0.005:5, 0")
        ),
        *(("max_steps", each) for each in (True, 2.5, "2.5", "many", "1e400", None, [300])),
        *(("tag_dropout", each) for each in (True, "half", "nan", float("nan"), "", None)),
        ("template", 5),
        ("negative", 1),
    ],
)
def test_what_is_no_number_is_refused_by_its_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as refused:
        TrainConfig.from_dict({name: value})
    assert refused.value.option == name
    assert f"({name})" in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": "0,005"},
        {"learning_rate": "0.005:10, 0,001"},
        {"clip_grad": "norm", "clip_grad_limit": "0,1"},
        {"tag_dropout": "0,5"},
        {"ema_rate": "0,97"},
        {"negative": True, "train_cfg_scale": "1,5-3:cos"},
        {"negative": True, "train_cfg_scale": "1.5-3,5"},
        {"trials": 2, "trial_learning_rates": "0,005; 0,01"},
        {"trials": 2, "trial_learning_rates": "0,005, 0,01"},
        {"trials": 2, "trial_learning_rates": ["0,005", "0,01"]},
    ],
)
def test_a_decimal_comma_gets_one_clear_message_everywhere(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected a decimal point") as refused:
        TrainConfig.from_dict(options)
    assert refused.value.option == list(options)[-1]
    last = list(options)[-1]
    assert last in problems(options), "beside its entry in the form, too"


def test_the_command_line_says_the_same_of_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, said in (
        (("--tag-dropout", "0,5"), "--tag-dropout: found '0,5', expected a decimal point: 0.5"),
        (("--max-steps", "1,000"), "--max-steps: found '1,000', expected a whole number without commas"),
        (("--batch-size", "two"), "--batch-size: found 'two', expected a whole number"),
    ):
        with pytest.raises(SystemExit):
            parsed(*flags)
        assert said in capsys.readouterr().err
