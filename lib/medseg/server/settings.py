"""Settings of the app: what `--conf KEY VALUE` may say, checked at start.

| key | value | default |
|---|---|---|
| `models` | method names, comma separated | every known method |
| `labels` | label names, comma separated, in the order 1..N | `labels.json` of the study, or as saved |
| `device` | `cpu`, `cuda`, `cuda:1` | a GPU if there is one |
| `model_dir` | folder of models, runs and scores | `<app>/model` |
| `tracking_uri` | an MLflow server, or `off` | `sqlite:///<model_dir>/mlflow.db` |
| `preset` | `cpu` or `paper`: the method's committed budget | `cpu` without a GPU, else the method's defaults |
| `validation` | ids of the frozen validation cases, comma separated | by hash of the patient |
| `validation_fraction` | share of patients that validate | 0.2 |
| `patient_pattern` | regular expression: image id -> patient | the image id |
| `init` | `champion`, `champion:METHOD` (pretrain once, then start from it), or a safetensors file | none |
| `gpus` | GPUs a training uses, or `all` | 1 |
| `gate_eps` | least gain in quality for a new model, 0..1 | 0 |
| `seed` | seed of the strategies | 0 |
| `lease_minutes` | how long an image stays with an annotator | 60 |
| `diversity` | weight of distance against score in `<method>_diverse` | 1 |
| `auto_scoring` | score by itself after a promotion and when images come | true |
| `upload_gb` | largest upload | 4 |
| `cors_origins` | web origins that may use the server, comma separated | this machine |
| `allow_remote` | answer other machines | true if `--host` names another address than this machine's loopback |
| `expose_logs` | serve `/logs/`, which holds image ids and paths | false |
| `clicks` | offer each model that answers with a mask for correction by clicks, too | true |
| `modalities` | modalities of a DICOMweb archive whose series are images, comma separated | CT, MR, PT, NM, CR, DX |
| `label_codes` | JSON file: SNOMED codes and colours of labels in DICOM SEG | a table of common organs |
| `weak_labels` | CSV of weak labels, read at start for images that have no extents yet | |
| `METHOD.KEY` | one setting of one method, `caml.iterations 400` | |
| `set` | settings of all methods that have them, `iterations=400,patch=64,64,32` | |
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from medseg.cases import patient_of
from medseg.errors import MedsegError
from medseg.methods import METHODS, method_class
from medseg.methods.base import MethodConfig
from medseg.training.initial import adopted_settings

FOREIGN = frozenset({"server_mode"})  # read by MONAI Label itself
_METHOD_FIELDS = ("validation_fraction", "patient_pattern")


@dataclass(frozen=True)
class AppSettings:
    """Values of the keys in the module's table; `method_settings` holds what belongs to single methods."""

    models: tuple[str, ...] = tuple(METHODS)
    labels: tuple[str, ...] = ()
    device: str | None = None
    model_dir: str | None = None
    tracking_uri: str | None = None
    preset: str | None = None
    validation: tuple[str, ...] = ()
    validation_fraction: float = 0.2  # as MethodConfig
    patient_pattern: str | None = None
    init: str | None = None
    gpus: str = "1"  # ours: the other GPUs stay free for inference
    gate_eps: float = 0.0
    seed: int = 0
    lease_minutes: float = 60.0  # ours: a careful volume takes half an hour
    diversity: float = 1.0
    auto_scoring: bool = True
    upload_gb: float = 4.0  # ours: a CT of 1500 slices is 0.8 GB
    cors_origins: tuple[str, ...] = ()
    allow_remote: bool | None = None
    expose_logs: bool = False
    clicks: bool = True
    modalities: tuple[str, ...] = ("CT", "MR", "PT", "NM", "CR", "DX")  # ours: grey volumes and radiographs
    label_codes: str | None = None
    weak_labels: str | None = None
    method_settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def from_conf(cls, conf: Mapping[str, Any]) -> AppSettings:
        """Read the strings of `--conf`.

        Raises:
            MedsegError: unknown key, unknown method, or a value that cannot be read; names what is known.
        """
        values: dict[str, Any] = {}
        specific: dict[str, dict[str, str]] = {}
        shared: dict[str, str] = {}
        for key, text in conf.items():
            method, dot, name = key.partition(".")
            if key in FOREIGN:
                continue
            if dot:
                specific.setdefault(_known_method(method), {})[name] = str(text)
            elif key == "set":
                shared = _assignments(str(text))
            else:
                values[key] = _parse(key, str(text))
        if not values.get("models", True):
            raise MedsegError(f"--conf models is empty; known models: {', '.join(METHODS)}")
        settings = cls(**values, method_settings=_merge(shared, specific, values.get("models", tuple(METHODS))))
        settings._check()
        return settings

    def config(self, method: str, overrides: Mapping[str, Any] | None = None) -> MethodConfig:
        """The config a method trains with: preset, its settings for the app, those of the model in `init`, shared ones,
        its own, then `overrides`.

        Raises:
            MedsegError: unknown setting or bad value.
        """
        kind = method_class(method)
        preset = dict(kind.presets[self.preset or "cpu"].config) if self.preset or not self._on_gpu() else {}
        shared = {name: getattr(self, name) for name in _METHOD_FIELDS}
        own = dict(self.method_settings.get(method, {}))
        if misplaced := sorted({*own, *(overrides or {})} & set(_METHOD_FIELDS)):
            raise MedsegError(f"{misplaced[0]} belongs to the whole study; start the server with --conf {misplaced[0]}")
        given = {**shared, **own, **(overrides or {})}
        adopted = adopted_settings(kind, given.get("init"))
        return kind.config_class.from_dict({**preset, **kind.app_settings, **adopted, **given})

    def _on_gpu(self) -> bool:
        return torch.cuda.is_available() and self.device != "cpu"

    def _check(self) -> None:
        if not 0 <= self.gate_eps < 1:
            raise MedsegError(f"--conf gate_eps is {self.gate_eps}; give a number in 0..1")
        if self.lease_minutes <= 0 or self.upload_gb <= 0:
            raise MedsegError("--conf lease_minutes and upload_gb must be positive")
        if self.gpus != "all" and not (self.gpus.isdigit() and int(self.gpus) >= 1):
            raise MedsegError(f"--conf gpus is {self.gpus!r}; give a number from 1, or all")
        patient_of("", self.patient_pattern)  # refuses what is no regular expression
        if len(set(self.labels)) != len(self.labels):
            raise MedsegError(f"--conf labels names a label twice: {', '.join(self.labels)}")
        for method in self.models:
            presets = method_class(method).presets
            if self.preset and self.preset not in presets:
                raise MedsegError(f"{method} has no preset {self.preset!r}; known presets: {', '.join(presets)}")
            self.config(method)


def _known_method(name: str) -> str:
    if name not in METHODS:
        raise MedsegError(f"there is no model {name!r}; known models: {', '.join(METHODS)}")
    return name


def _parse(key: str, text: str) -> Any:
    kinds = {f.name: f.type for f in fields(AppSettings) if f.name != "method_settings"}
    if key not in kinds:
        near = difflib.get_close_matches(key, kinds, n=3) or sorted(kinds)
        raise MedsegError(f"--conf has no key {key!r}; did you mean {', '.join(near)}?")
    kind = str(kinds[key])
    if kind.startswith("tuple"):
        items = tuple(part.strip() for part in text.split(",") if part.strip())
        return tuple(dict.fromkeys(_known_method(item) for item in items)) if key == "models" else items
    if kind.startswith("str"):
        return text.strip() or None
    try:
        return _truth(text) if kind.startswith("bool") else int(text) if kind == "int" else float(text)
    except ValueError as error:
        wanted = "true or false" if kind.startswith("bool") else "a whole number" if kind == "int" else "a number"
        raise MedsegError(f"--conf {key} is {text!r}; give {wanted}") from error


def _truth(text: str) -> bool:
    if text.strip().lower() in ("1", "true", "yes", "on"):
        return True
    if text.strip().lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError(text)


def _assignments(text: str) -> dict[str, str]:
    """`a=1,b=2,3` as {"a": "1", "b": "2,3"}: a comma ends a value only where another `key=` follows."""
    parts = [part for part in re.split(r",\s*(?=[A-Za-z_][A-Za-z0-9_]*\s*=)", text.strip()) if part]
    for part in parts:
        if "=" not in part:
            raise MedsegError(f"--conf set has {part!r}; write key=value,key=value")
    return {key.strip(): value.strip() for key, _, value in (part.partition("=") for part in parts)}


def _merge(
    shared: Mapping[str, str], specific: Mapping[str, Mapping[str, str]], models: tuple[str, ...]
) -> dict[str, dict[str, str]]:
    """Settings of each method; a shared one goes to the methods that have it, and at least one must."""
    names = {model: {f.name for f in fields(method_class(model).config_class)} for model in models}
    for key in shared:
        if not any(key in known for known in names.values()):
            everything = sorted(set().union(*names.values()))
            near = difflib.get_close_matches(key, everything, n=3) or everything
            raise MedsegError(f"--conf set: no model has a setting {key!r}; did you mean {', '.join(near)}?")
    return {
        model: {**{k: v for k, v in shared.items() if k in names[model]}, **specific.get(model, {})} for model in models
    }
