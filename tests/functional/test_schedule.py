"""Schedules mean what they mean in the WebUI. The tables are worked out by hand from its rules."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ti_trainer.errors import ConfigError
from ti_trainer.functional.schedule import Schedule
from ti_trainer.training.trainer import StepDone, Trainer

# what is written, max steps -> (first update, last update, rate) for every update that the WebUI makes
WEBUI = [
    ("0.005", 10, [(1, 10, 0.005)]),
    ("5e-3", 10, [(1, 10, 0.005)]),
    ("0.005:10", 10, [(1, 10, 0.005)]),
    ("0.005:4", 10, [(1, 4, 0.005)]),  # a run past the last stage ends
    ("0.005:4, 1e-3:8", 10, [(1, 4, 0.005), (5, 8, 0.001)]),
    ("0.005:4, 1e-3:8, 1e-5", 12, [(1, 4, 0.005), (5, 8, 0.001), (9, 12, 1e-5)]),
    ("0.005:4, 1e-3:-1", 10, [(1, 4, 0.005), (5, 10, 0.001)]),
    ("0.005:-1", 10, [(1, 10, 0.005)]),
    ("0.005:-1, 1e-3:5", 10, [(1, 10, 0.005)]),  # nothing comes after "to the end"
    ("0.005, 1e-3:5", 10, [(1, 10, 0.005)]),
    ("0.005:100", 10, [(1, 10, 0.005)]),
    ("0.005:4, 1e-3:100, 1:200", 10, [(1, 4, 0.005), (5, 10, 0.001)]),
    ("0.005:4,", 10, [(1, 4, 0.005)]),
    ("0.005:4, 1e-3,", 10, [(1, 4, 0.005), (5, 10, 0.001)]),
    (" 0.005 : 4 ,, 1e-3:8 , ", 10, [(1, 4, 0.005), (5, 8, 0.001)]),
    ("0:2, 0.005", 4, [(1, 2, 0.0), (3, 4, 0.005)]),
    ("0.005:1, 0.1:2", 9, [(1, 1, 0.005), (2, 2, 0.1)]),
]

# the same with the step that an embedding has been trained for already
STARTED = [
    ("0.005:4, 1e-3:8, 1e-5", 12, 3, [(4, 4, 0.005), (5, 8, 0.001), (9, 12, 1e-5)]),
    ("0.005:4, 1e-3:8, 1e-5", 12, 4, [(5, 8, 0.001), (9, 12, 1e-5)]),
    ("0.005:4, 1e-3:8, 1e-5", 12, 8, [(9, 12, 1e-5)]),
    ("0.005:4, 1e-3:8", 12, 7, [(8, 8, 0.001)]),
    ("0.005", 12, 10, [(11, 12, 0.005)]),
]

FRACTIONS = [
    ("0.005:0.5, 1e-3", 10, [(1, 5, 0.005), (6, 10, 0.001)]),
    ("0.005:0.5, 1e-3", 40, [(1, 20, 0.005), (21, 40, 0.001)]),
    ("0.005:0.25, 1e-3:0.75", 10, [(1, 2, 0.005), (3, 7, 0.001)]),
    ("0.005:0.5, 1e-3:8", 10, [(1, 5, 0.005), (6, 8, 0.001)]),
    ("0.005:1, 1e-3", 3, [(1, 1, 0.005), (2, 3, 0.001)]),  # 1 is a step, not all of them
]


def spread(stages: list[tuple[int, int, float]]) -> dict[int, float]:
    return {step: rate for first, last, rate in stages for step in range(first, last + 1)}


@pytest.mark.parametrize(("text", "max_steps", "stages"), WEBUI + FRACTIONS)
def test_every_update_has_the_rate_that_the_webui_gives_it(
    text: str, max_steps: int, stages: list[tuple[int, int, float]]
) -> None:
    schedule = Schedule.parse(text, max_steps)
    assert {step: schedule.at(step) for step in range(1, schedule.last_step + 1)} == spread(stages)


@pytest.mark.parametrize(("text", "max_steps", "start", "stages"), STARTED)
def test_an_embedding_with_steps_behind_it_starts_in_its_stage(
    text: str, max_steps: int, start: int, stages: list[tuple[int, int, float]], trainer: Callable[..., Trainer]
) -> None:
    events = trainer(learning_rate=text, max_steps=max_steps, step=start).run()
    assert {event.step: event.learning_rate for event in events if isinstance(event, StepDone)} == spread(stages)


@pytest.mark.parametrize(("text", "start"), [("0.005:4, 1e-3:8", 8), ("0.005:4, 1e-3:8", 9), ("0.005", 12)])
def test_an_embedding_past_the_last_stage_is_refused(text: str, start: int, trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(ConfigError, match=f"trained for {start} steps already.*raise max steps"):
        trainer(learning_rate=text, max_steps=12, step=start)


def test_a_limit_whose_stages_are_over_stays() -> None:
    assert Schedule.parse("0.1:5, 0.2:7", 100).at(50) == 0.2


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ",",
        ":5",
        "abc",
        "0.005;4",
        "0.1:x",
        "0.1:1:2",
        "nan",
        "inf",
        "0.1:nan",
        "-0.1",
        "0.1:-5",
        "0.1:-0.5",
        "0.1:2.5",
        "0.1:2, fast",
    ],
)
def test_anything_else_is_refused_with_what_was_found(text: str) -> None:
    with pytest.raises(ConfigError, match=r"schedule cannot be read at .*expected"):
        Schedule.parse(text, 10)


COMMAS = {
    "0,001": "0,001",
    "0,005:100": "0,005",
    "0.005:2, 0,001": "0,001",
    "0.005:2,0,001": "0,001",
    "0.005:10, 0,001:20, 1e-4": "0,001",
    "1,5e-3": "1,5e-3",
    "0.005:100, 1,5e-4:200": "1,5e-4",
    "0.005:0,5": "0,5",
    "0.005:0,5, 0.001": "0,5",
    "0.005 : 0,25 , 0.001": "0,25",
    "５，０": "5,0",
    "0٫001": "0,001",
}


@pytest.mark.parametrize("text", COMMAS)
def test_a_decimal_comma_is_named_never_taken_for_two_rates(text: str) -> None:
    with pytest.raises(ConfigError, match=f"found '{COMMAS[text]}', expected a decimal point"):
        Schedule.parse(text, 1000)


@pytest.mark.parametrize("text", ["0.005:1,000", "0.005:10,000, 0.001", "0.005:1,500", "0.1:2,000,000"])
def test_so_are_commas_for_thousands(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a step without commas"):
        Schedule.parse(text, 1000)


@pytest.mark.parametrize("text", ["0.005:1.000,0.001", "0.005 : 10.000", "0.1:2.000.000", "0.1:5, 0.2:1.500, 0.1"])
def test_so_are_points_for_thousands(text: str) -> None:
    with pytest.raises(ConfigError, match=r"found '[\d.]+', expected a step without points: \d+\."):
        Schedule.parse(text, 10_000_000)


@pytest.mark.parametrize(("text", "last"), [("0.005:0.500", 50), ("0.005:0.125", 12), ("0.005:1.0", 1), ("0.1:2.000e1", 20)])
def test_other_steps_with_points_are_what_they_were(text: str, last: int) -> None:
    assert Schedule.parse(text, 100).last_step == last


@pytest.mark.parametrize("text", ["0.005:0", "0.005:0.01"])
def test_a_schedule_that_ends_before_the_first_step_says_so(text: str, trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(ConfigError, match="ends at step 0"):
        trainer(learning_rate=text, max_steps=12)


@pytest.mark.parametrize(
    "text",
    ["0.005:10,0.001:20,1e-4", "0.005,0.001", "1e-3:5,2e-3", "5e-3:100,1e-3:1000", ".5:1,.25", "0.005:0.5,0.001", "1:5,2:9"],
)
def test_commas_without_spaces_are_the_webuis_grammar(text: str) -> None:
    assert Schedule.parse(text, 1000) == Schedule.parse(text.replace(",", ", "), 1000)


@pytest.mark.parametrize(("text", "rate"), [("５e-3", 0.005), ("1e−3", 0.001), ("0.005：10", 0.005), ("0.005 :10", 0.005)])
def test_other_keyboards_digits_are_digits(text: str, rate: float) -> None:
    assert Schedule.parse(text, 100).at(1) == rate


@pytest.mark.parametrize("text", ["5e-3;", "0.005@100", "0.005:10; 0.001", "0.005-0.001", "1/200", "0.005:10%", "½"])
def test_other_notations_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="schedule cannot be read at"):
        Schedule.parse(text, 100)


@pytest.mark.parametrize(
    ("text", "unused"),
    [
        ("0.005:4, 0.001:8", ()),
        ("0.005:4, 0.001:2", ("0.001:2",)),
        ("0.005:4, 0.001:4, 1e-4:9", ("0.001:4",)),
        ("0.005, 0.001:4", ("0.001:4",)),
        ("0.005:-1, 0.001", ("0.001",)),
        ("0.005:20, 0.001:30", ("0.001:30",)),
        ("0.005:0, 0.001", ("0.005:0",)),
    ],
)
def test_stages_that_never_come_up_are_known(text: str, unused: tuple[str, ...]) -> None:
    assert Schedule.parse(text, 10).unused == unused
