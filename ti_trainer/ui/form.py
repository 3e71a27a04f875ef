"""The options of a run as a form: widgets made from their declarations, and a TrainConfig made from the widgets' values."""

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

# What guides set first is always visible, two fields in a row; the presets follow the first field.
FIRST = (
    *("template", "learning_rate", "max_steps", "batch_size", "gradient_accumulation_steps", "width", "height"),
    *("clip_grad", "clip_grad_limit", "preview_every", "save_every", "latent_sampling"),
)
# Checked while the user types.
CHECKED_LIVE = ("learning_rate", "clip_grad_limit", "filename_word_regex", "width", "height", *LISTS)
DEPENDENCIES = ("max_steps", "clip_grad", "trials")  # of some of these


@dataclass
class Form:
    """The widgets and error slots of every option that the user can set on this host, in the order of their creation."""

    host: Host
    values: Mapping[str, Any]
    choices: Mapping[str, Sequence[str]]
    widgets: dict[str, Any] = field(default_factory=dict)
    slots: dict[str, Any] = field(default_factory=dict)
    elem_prefix: str = "ti_trainer_train_"

    def put(self, *names: str) -> None:
        """Add the widgets of these options to the current layout block."""
        for option in offered(self.host):
            if option.name in names:
                choices = self.choices.get(option.name)
                made = widget(option, self.values[option.name], choices=choices, elem_prefix=self.elem_prefix)
                self.widgets[option.name], self.slots[option.name] = made

    def put_section(self, section: str) -> None:
        """Add the widgets of a section, except for those in FIRST."""
        self.put(*(option.name for option in offered(self.host) if option.section == section and option.name not in FIRST))

    def check_live(self) -> None:
        """Show an option's error beside it while the user types."""
        for name in CHECKED_LIVE:
            if name not in self.widgets:
                continue

            def check(value: Any, *others: Any, name: str = name) -> Any:
                found = problems(typed({name: value, **dict(zip(DEPENDENCIES, others, strict=True))}))
                return error_update(found.get(name))

            inputs = [self.widgets[each] for each in (name, *DEPENDENCIES)]
            listen(self.widgets[name].change, check, inputs, [self.slots[name]])

    def config(self, values: Mapping[str, Any]) -> TrainConfig:
        """The options with the host's defaults below them; ConfigError if one is invalid."""
        return TrainConfig.from_dict({**self.host.defaults, **typed(values)})


def offered(host: Host) -> list[Option]:
    """The options that the user can set on this host."""
    unavailable = set() if host.samplers else {"preview_sampler"}
    return [option for option in options() if option.name not in host.fixed | unavailable]


def typed(values: Mapping[str, Any], declared: Iterable[Option] | None = None) -> dict[str, Any]:
    """Convert gradio's values to the options' types: whole numbers may come as floats, and an empty choice as None."""
    kinds = {option.name: option.type for option in declared or options()}
    found = dict(values)
    for name, value in values.items():
        if kinds[name] is int and isinstance(value, float) and value.is_integer():
            found[name] = int(value)
        elif kinds[name] is str and value is None:
            found[name] = ""
    return found


def starting_values(host: Host, prefilled: TrainConfig | None) -> dict[str, Any]:
    """The form's initial values: the defaults, overridden by the host's, overridden by the demonstration's."""
    defaults = TrainConfig().to_dict()
    values = {**defaults, **host.defaults}
    if prefilled is not None:
        values |= {name: value for name, value in prefilled.to_dict().items() if value != defaults[name]}
    return values
