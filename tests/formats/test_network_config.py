"""What a config.json may ask for, however deep it stands there, and that nothing reaches a hub meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ti_trainer.formats import network_config

ATTENTION = {"": "evil/k"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"attn_implementation": ATTENTION}, "code from elsewhere"),
        ({"text_config": {"_attn_implementation": "evil/k"}}, "code from elsewhere"),
        ({"a": [[{"experts_implementation": ["evil/k"]}]]}, "code from elsewhere"),
        ({"attn_implementation": {"vision": {"": "evil/k"}}}, "code from elsewhere"),
        ({"attn_implementation": 1}, "code from elsewhere"),
        ({"vision": {"quantization_config": {"quant_method": "x"}}}, "quantization_config, which is not supported"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"configuration_files": ["config.4.0.0.json"]}, "configuration_files"),
        ({"num_hidden_layers": 20_000}, "expected 0 to 200"),
        ({"depths": [3, 10**6]}, "expected 0 to 200"),
        ({"layers_per_block": -1}, "expected 0 to 200"),
        ({"num_labels": 1e8}, "expected 0 to 100,000"),
        ([], "holds list, expected an object"),
    ],
)
def test_what_a_library_must_not_be_given_is_refused(settings: object, said: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=said) as refused:
        network_config.read(file)
    assert refused.type is ValueError


def test_deep_nesting_and_an_adapter_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"a":' * 100_000)
    with pytest.raises(ValueError, match="cannot be used"):
        network_config.read(file)
    file.write_text("{}")
    (tmp_path / network_config.ADAPTER).write_text('{"base_model_name_or_path": "evil/model"}')
    with pytest.raises(ValueError, match="is an adapter, not a model"):
        network_config.read(file)


def test_usual_settings_are_given_as_they_are(tmp_path: Path) -> None:
    usual = {
        "attn_implementation": {"vision": "sdpa", "": None},
        "_attn_implementation_autoset": True,
        "quantization_config": None,
        "auto_map": {"AutoConfig": "evil/model--code.Config"},  # nobody looks at it
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 10],
        "id2label": {"0": "cat"},
    }
    (tmp_path / "config.json").write_text(json.dumps(usual))
    assert network_config.read(tmp_path / "config.json") == usual


def test_the_hub_is_out_of_reach_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with network_config.offline(), network_config.offline(), pytest.raises(Exception, match=r"(?i)offline|outgoing"):
        hub.HfApi().model_info("evil/model")
    assert constants.HF_HUB_OFFLINE is False, "BLIP may be downloaded"
