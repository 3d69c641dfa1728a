"""Every kind of layer that is kept can be asked for, described, and made in both ways."""

from __future__ import annotations

from dataclasses import fields

from sum_factory.labelgen.commands.label import run_command
from sum_factory.labelgen.kept import KEPT
from sum_factory.labelgen.layers import KEPT_LAYERS
from sum_factory.labelgen.run_settings import RunSettings
from sum_factory.shared.shards.kinds import kinds

NAMES = {name for name, kind in kinds().items() if kind.is_kept}


def test_every_kept_layer_is_made_and_described() -> None:
    assert len(NAMES) >= 3
    assert {*KEPT} == {*KEPT_LAYERS} == NAMES


def test_every_kept_layer_has_a_setting_and_an_option() -> None:
    settings = {field.name for field in fields(RunSettings) if field.name.startswith("keep_")}
    options = {option.name for option in run_command.params if str(option.name).startswith("keep_")}
    assert settings == options == {f"keep_{name}" for name in NAMES}
    for name in NAMES:
        asked = RunSettings(images=("photos",), shards="labels", **{f"keep_{name}": True})
        assert {each for each in NAMES if asked.keeps(each)} == {name}
