"""The options of a run as a form: widgets made from config.py, and what they hold turned back into a TrainConfig."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ti_trainer.config.options import Option
from ti_trainer.config.training import TrainConfig, options, problems
from ti_trainer.config.trials import LISTS
from ti_trainer.host import Host
from ti_trainer.ui.gradio_compat import listen
from ti_trainer.ui.widgets import error_update, widget

FIRST = ("template", "max_steps", "learning_rate", "batch_size")  # what a first run needs stands above the rest
# Can be wrong in ways worth saying at once.
AS_TYPED = ("learning_rate", "clip_grad_limit", "filename_word_regex", "width", "height", *LISTS)
DEPENDED_ON = ("max_steps", "clip_grad", "trials")  # by some of these


@dataclass
class Form:
    """The widgets of every option that the host leaves to its user, and their error slots, in the order they were put."""

    host: Host
    values: Mapping[str, Any]
    choices: Mapping[str, Sequence[str]]
    widgets: dict[str, Any] = field(default_factory=dict)
    slots: dict[str, Any] = field(default_factory=dict)

    def put(self, *names: str) -> None:
        """Make the widgets of these options here."""
        for option in offered(self.host):
            if option.name in names:
                choices = self.choices.get(option.name)
                made = widget(option, self.values[option.name], choices=choices)
                self.widgets[option.name], self.slots[option.name] = made

    def put_section(self, section: str) -> None:
        """Make those of a section that do not stand above."""
        self.put(*(option.name for option in offered(self.host) if option.section == section and option.name not in FIRST))

    def listen_as_typed(self) -> None:
        """Say beside an option what is wrong with it as soon as it is."""
        for name in AS_TYPED:
            if name not in self.widgets:
                continue

            def check(value: Any, *others: Any, name: str = name) -> Any:
                found = problems(typed({name: value, **dict(zip(DEPENDED_ON, others, strict=True))}))
                return error_update(found.get(name))

            around = [self.widgets[each] for each in (name, *DEPENDED_ON)]
            listen(self.widgets[name].change, check, around, [self.slots[name]])

    def config(self, values: Mapping[str, Any]) -> TrainConfig:
        """The options as they stand, the host's own among them; ConfigError if one is wrong."""
        return TrainConfig.from_dict({**self.host.defaults, **typed(values)})


def offered(host: Host) -> list[Option]:
    """Every option but those that are the host's business, or have nothing to choose from."""
    nothing = {"preview_sampler"} if not host.samplers else set()
    return [option for option in options() if option.name not in host.fixed | nothing]


def typed(values: Mapping[str, Any], declared: Iterable[Option] | None = None) -> dict[str, Any]:
    """Values as the options have them: gradio's whole numbers may be floats, an empty choice None."""
    kinds = {option.name: option.type for option in declared or options()}
    found = dict(values)
    for name, value in values.items():
        if kinds[name] is int and isinstance(value, float) and value.is_integer():
            found[name] = int(value)
        elif kinds[name] is str and value is None:
            found[name] = ""
    return found


def starting_values(host: Host, prefilled: TrainConfig | None) -> dict[str, Any]:
    """What the form shows at first: defaults, over them the host's settings, over them what a demonstration wants."""
    defaults = TrainConfig().to_dict()
    values = {**defaults, **host.defaults}
    if prefilled is not None:
        values |= {name: value for name, value in prefilled.to_dict().items() if value != defaults[name]}
    return values
