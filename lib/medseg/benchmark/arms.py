"""Arms of a benchmark: choosing them by name, their settings, and what an arm with a function gets and gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from medseg.benchmark.recorder import SLICES, evaluate_recorded, save_overlays, thin_picture
from medseg.benchmark.request import BenchmarkRequest
from medseg.cases import Case
from medseg.errors import MedsegError, NotFoundError
from medseg.inference.predictor import Predictor
from medseg.methods import method_class
from medseg.methods.base import Arm, ArmGroup, Method, MethodConfig
from medseg.reports.overlays import Overlay, cut_overlay
from medseg.training.run import TrainingJob, train
from medseg.training.settings import build_config, find_preset


@dataclass(frozen=True)
class ArmResult:
    """What an arm with a function of its own returns.

    Attributes:
        cases: case id -> its metrics, or its value of the group's metric alone.
        mean: value of the group's metric; None: the mean over the cases.
        seconds: of training; None: those of all models in the run's folder, and where it holds none, of the function.
        peak_memory_mb: peak memory of the arm; None: measured around the function.
        iterations: training iterations, 0 where nothing is trained.
        history: loss terms on the way, as `metrics.json` of a training has them.
        labelled: ids of the labelled cases that the arm learnt from; None: all that the fold has.
        extra: further numbers for the summary.
    """

    cases: Mapping[str, Any] = field(default_factory=dict)
    mean: float | None = None
    seconds: float | None = None
    peak_memory_mb: float | None = None
    iterations: int = 0
    history: Sequence[Mapping[str, Any]] = ()
    labelled: Sequence[str] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, value: ArmResult | Mapping[str, Any]) -> ArmResult:
        """Accept a plain mapping; keys that are no field go to `extra`."""
        if isinstance(value, ArmResult):
            return value
        known = {f.name for f in fields(cls)}
        extra = {**value.get("extra", {}), **{k: v for k, v in value.items() if k not in known}}
        return cls(**{**{k: v for k, v in value.items() if k in known}, "extra": extra})


@dataclass(frozen=True)
class ArmContext:
    """What an arm with a function of its own works with.

    Attributes:
        method: the benchmark's method.
        config: its settings, those of the arm included and fitted to the data.
        labels: label name -> index.
        device: "cpu", "cuda" or "cuda:1".
        seed: of this run.
        iterations: the budget.
        out: folder of this run.
        training_cases: labelled and unlabelled cases; the latter come without their mask.
        held_out_cases: cases to report on.
        metric: the group's, for titles.
        pictures: file that takes slices of the predictions for the report; None: no pictures of this run.
    """

    method: type[Method]
    config: MethodConfig
    labels: dict[str, int]
    device: str
    seed: int
    iterations: int
    out: Path
    training_cases: tuple[Case, ...]
    held_out_cases: tuple[Case, ...]
    metric: str = ""
    pictures: Path | None = None

    def train(
        self,
        overrides: Mapping[str, Any] | None = None,
        name: str = "model",
        *,
        cases: Sequence[Case] | None = None,
        method: str | None = None,
    ) -> Predictor:
        """Train in `out/<name>` and load the result.

        Args:
            overrides: settings that differ from this run's.
            name: folder of the model.
            cases: learn from these instead of all training cases (one domain, frozen pseudo-labels).
            method: train another method; the settings it shares with this one carry over.
        """
        kind = method_class(method) if method else self.method
        values = self.config.to_dict()
        if kind is not self.method:
            values = {f.name: values[f.name] for f in fields(kind.config_class) if f.name in values}
        config = kind.config_class.from_dict({**values, **(overrides or {})})
        chosen = tuple(cases) if cases is not None else self.training_cases
        train(TrainingJob(kind.name, config, self.labels, chosen, (), self.out / name, self.device, True))
        return self.predictor(self.out / name)

    def predictor(self, folder: Path) -> Predictor:
        """Load a model folder onto the device."""
        return Predictor.from_folder(folder, self.device)

    def evaluate(self, predictor: Predictor) -> dict[str, dict[str, float]]:
        """Metrics of the held-out cases, and pictures for the report."""
        return evaluate_recorded(predictor, self.held_out_cases, self.metric, self.pictures).cases

    def keep(self, overlays: Mapping[str, Overlay]) -> None:
        """Pictures for the report of an arm that evaluates by itself, by id of the case."""
        if self.pictures is not None:
            save_overlays(self.pictures, {k: thin_picture(cut_overlay(v, SLICES)) for k, v in overlays.items()})


def choose_arms(kind: type[Method], request: BenchmarkRequest) -> tuple[str, ArmGroup, tuple[Arm, ...]]:
    """The group and the arms that a request asks for.

    Returns:
        Name of the group, the group, its chosen arms in the group's order.

    Raises:
        NotFoundError: an unknown group or arm; names the known ones.
    """
    group_name = _group_of(kind, request)
    group = kind.arm_groups[group_name]
    own = {arm.name: arm for arm in group.arms}
    wanted = [name for name in request.arms if name not in kind.arm_groups or name in own]
    unknown = [name for name in wanted if name not in own]
    if unknown:
        raise NotFoundError(
            f"method {kind.name} has no arm {unknown[0]!r} in task {group_name}; known arms: {', '.join(own)}; "
            f"tasks: {', '.join(kind.arm_groups)}"
        )
    is_default = group_name == next(iter(kind.arm_groups))
    if not wanted:
        preset = find_preset(request.method, request.preset)
        named = preset.arms if is_default else ()
        wanted = [arm.name for arm in group.arms if (arm.name in named if named else arm.in_default)]
    return group_name, group, tuple(arm for arm in group.arms if arm.name in wanted)


def _group_of(kind: type[Method], request: BenchmarkRequest) -> str:
    """The group that is named, else the one that holds all named arms, else the default one."""
    groups = kind.arm_groups
    if request.task is not None:
        if request.task not in groups:
            raise NotFoundError(f"method {kind.name} has no task {request.task!r}; known tasks: {', '.join(groups)}")
        return request.task
    for name, group in groups.items():
        if request.arms and {*request.arms} <= {arm.name for arm in group.arms}:
            return name
    return next((name for name in request.arms if name in groups), next(iter(groups)))


def arm_config(kind: type[Method], arm: Arm, request: BenchmarkRequest, seed: int) -> MethodConfig:
    """The settings of an arm.

    They come from, each overriding the one before: the config's defaults, the preset, the request, the arm. An arm
    that trains another method takes the settings that both methods know, so that the budget is the same.
    """
    typed = {"iterations": request.iterations, "scale": request.scale, "seed": seed}
    config = build_config(request.method, request.preset, typed={**request.settings, **_given(typed)})
    trained = kind if arm.method is None else method_class(arm.method)
    if trained is not kind:
        shared = {f.name for f in fields(trained.config_class)} & {f.name for f in fields(kind.config_class)}
        config = trained.config_class.from_dict({k: v for k, v in config.to_dict().items() if k in shared})
    try:
        return config.with_overrides(arm.overrides)
    except MedsegError as error:
        raise MedsegError(f"arm {arm.name} of {kind.name}: {error}") from error


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
