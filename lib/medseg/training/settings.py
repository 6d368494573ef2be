"""The settings of a run: the method's defaults, then the preset, the model in `init`, a file, and what was typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from medseg.errors import MedsegError, NotFoundError
from medseg.methods import method_class
from medseg.methods.base import MethodConfig, Preset
from medseg.training.initial import adopted_settings


def find_preset(method: str, name: str) -> Preset:
    """A method's preset by name.

    Raises:
        NotFoundError: names the known ones.
    """
    presets = method_class(method).presets
    if name not in presets:
        raise NotFoundError(f"method {method} has no preset {name!r}; known presets: {', '.join(presets)}")
    return presets[name]


def build_config(
    method: str, preset: str, file: Path | None = None, typed: Mapping[str, Any] | None = None
) -> MethodConfig:
    """Merge all sources of settings; later ones win.

    Args:
        method: name of the method.
        preset: name of its preset.
        file: YAML (or JSON) file of settings, or a run's `config.json`.
        typed: settings from the command line or a request; None values are left out.
    """
    kind = method_class(method)
    stated = read_settings(file) if file else {}
    stated.update({key: value for key, value in (typed or {}).items() if value is not None})
    preset_values = dict(find_preset(method, preset).config)
    adopted = adopted_settings(kind, stated.get("init", preset_values.get("init")))
    return kind.config_class.from_dict({**preset_values, **adopted, **stated})


def read_settings(file: Path) -> dict[str, Any]:
    """Settings of a YAML or JSON file.

    Raises:
        NotFoundError: no such file.
        MedsegError: the file holds no mapping.
    """
    if not Path(file).exists():
        raise NotFoundError(f"settings file {file} does not exist")
    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise MedsegError(f"settings file {file} is not valid YAML: {str(error).splitlines()[0]}") from error
    if isinstance(values, dict) and isinstance(values.get("config"), dict):
        values = values["config"]
    if not isinstance(values, dict):
        raise MedsegError(f"settings file {file} must hold `key: value` lines")
    return values


def parse_pairs(pairs: Sequence[str]) -> dict[str, str]:
    """`["a=1", "b=2,3"]` as a dict.

    Raises:
        MedsegError: an item without `=`.
    """
    result = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key.strip():
            raise MedsegError(f"--set {pair!r} is not key=value")
        result[key.strip()] = value.strip()
    return result
