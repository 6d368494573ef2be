"""The one interface between a method and everything else.

Training, inference, acquisition, benchmarks, server and reports are written once over `Method`. A new paper is a new
folder beside this file and one line in `medseg.methods.METHODS`.
"""

from __future__ import annotations

import difflib
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from inspect import getattr_static
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from monai.data import MetaTensor
from torch import nn

from medseg.cases import Case, image_suffix, patient_of
from medseg.errors import MedsegError
from medseg.methods import checks
from medseg.metrics.table import segmentation_metrics
from medseg.networks.precision import MODES
from medseg.networks.trunk import Trunk
from medseg.transforms.io import PICTURES
from medseg.transforms.labels import read_label
from medseg.weak import WeakLabels

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from medseg.reports.page import Block

V_NET = "caml"
"""The trunk of pretraining whose network is that of `supervised` with `network=vnet`, too; only it finds landmarks and
shapes."""

LARGEST_SEED = 2**32 - 1  # numpy's; torch takes larger ones
SMALLEST_SCALE = 0.01  # ours: a hundredth of the resolution

Sample = dict[str, Any]
"""What `Method.load` returns: preprocessed tensors of one case on the network's grid, `image` always among them."""

Batch = dict[str, dict[str, torch.Tensor]]
"""One training batch: stream name -> collated samples, each tensor (B, ...)."""


class Supervision(StrEnum):
    """What a method can learn from."""

    MASKS = "masks"
    UNLABELLED = "unlabelled"
    EXTENTS = "extents"
    ANGLES = "angles"
    LANDMARKS = "landmarks"
    DOMAIN = "domain"


@dataclass(frozen=True)
class Stream:
    """A source of training samples: its cases, and how many samples of each batch come from it."""

    name: str
    cases: tuple[Case, ...]
    per_batch: int


@dataclass(frozen=True)
class TrainingSet:
    """What a method gets for work on its whole training set, between iterations.

    Attributes:
        cases: the training cases that can be read.
        load: `Method.load`, cached.
    """

    cases: tuple[Case, ...]
    load: Callable[[Case], Sample]


@dataclass
class StepOutput:
    """Result of one training step: the loss to minimise and its named terms, scalars for people to watch."""

    loss: torch.Tensor
    terms: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Measurement:
    """A number with its unit, for example an extent in % or an angle in deg."""

    value: float
    unit: str


MARKUP_KINDS = ("Fiducial", "Line", "Angle", "Curve")
"""Kinds of drawn measurements that 3D Slicer knows by these names."""


@dataclass(frozen=True)
class Markup:
    """Points, a line, an angle or a curve that belong to an image.

    Attributes:
        kind: one of `MARKUP_KINDS`.
        name: shown in the viewer's list.
        points: world coordinates by the image's affine (RAS, mm), 2 or 3 each.
        labels: one per point; empty: numbered.
        confidence: one per point in [0, 1]; empty: unknown.
        measurement: the number that the markup shows.
    """

    kind: str
    name: str
    points: tuple[tuple[float, ...], ...]
    labels: tuple[str, ...] = ()
    confidence: tuple[float, ...] = ()
    measurement: Measurement | None = None

    def __post_init__(self) -> None:
        if self.kind not in MARKUP_KINDS:
            raise ValueError(f"markup {self.name!r} is of kind {self.kind!r}; give one of {', '.join(MARKUP_KINDS)}")
        if any(len(point) not in (2, 3) for point in self.points):
            raise ValueError(f"markup {self.name!r} has points that are neither 2D nor 3D")
        for key in ("labels", "confidence"):
            if getattr(self, key) and len(getattr(self, key)) != len(self.points):
                raise ValueError(
                    f"markup {self.name!r} has {len(self.points)} points but {len(getattr(self, key))} {key}"
                )


@dataclass
class Prediction:
    """What a method says of one image, on the grid that the tensors' affine tells.

    Attributes:
        probabilities: (1 + N, *grid) float, background first; None where the method makes no mask.
        uncertainty: (1, *grid) float in [0, 1].
        measurements: named numbers with units.
        warnings: sentences for the annotator.
        mask: (1, *grid) uint8; None: the most probable class of every voxel.
        markups: points and lines, in world coordinates.
        labels: those of the method's labels that can occur in this image; None: all.
        facts: what else is to be told of it, by name (the imaging domain, who chose it, how sure that is).
    """

    probabilities: MetaTensor | None
    uncertainty: MetaTensor | None = None
    measurements: dict[str, Measurement] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    mask: MetaTensor | None = None
    markups: tuple[Markup, ...] = ()
    labels: dict[str, int] | None = None
    facts: dict[str, str | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mask is None and self.probabilities is not None:
            mask = self.probabilities.as_tensor().argmax(dim=0, keepdim=True).to(torch.uint8)
            self.mask = MetaTensor(mask, affine=self.probabilities.affine)


@dataclass(frozen=True)
class Score:
    """How much would be learnt from labelling an image.

    Attributes:
        value: higher is labelled first.
        why: one phrase for the annotator, with the number ("entropy 0.41 inside the predicted organ").
        parts: the numbers the value is made of.
        features: an embedding of the image for diversity; empty where the method has none.
        group: values are comparable within it (an imaging domain); empty: among all images.
    """

    value: float
    why: str
    parts: dict[str, float] = field(default_factory=dict)
    features: tuple[float, ...] = ()
    group: str = ""


@dataclass(frozen=True)
class MethodConfig:
    """Settings that every method has. A method's own config adds its fields; every default names its source."""

    iterations: int = 6000  # ours: a training round in the app; papers' budgets stand in the presets
    seed: int = 0
    scale: float = 1.0  # 0.5 works at half resolution; 0 halves until an image has at most a million voxels
    learning_rate: float = 1e-2
    amp: str = "auto"  # ours: bf16 where the hardware has it, else off; "fp16" uses a gradient scaler
    workers: int = 0  # ours: preprocessed cases are cached in memory, so loading is cheap
    cache_gb: float = 4.0  # ours: cap of the in-memory cache of preprocessed cases
    epoch_iterations: int = 50  # ours: progress, checkpoints and validation happen at the end of an epoch
    validate_every: int = 5  # ours: epochs between validations during training; 0: only at the end
    validation_fraction: float = 0.2  # ours: share of patients whose labelled cases are frozen for validation
    patient_pattern: str | None = None  # regular expression with one group: case id -> patient id
    init: str | None = None  # safetensors file whose matching layers initialise the network

    files: ClassVar[frozenset[str]] = frozenset({"init"})
    """Settings that name a file: requests from the network may not set them."""

    def __post_init__(self) -> None:
        checks.counts(self, "iterations", "epoch_iterations")
        patient_of("", self.patient_pattern)  # a pattern that is none is refused before any case is read
        checks.from_zero(self, "seed", "workers", "cache_gb", "validate_every", "learning_rate", "scale")
        checks.below_one(self, "validation_fraction")
        if self.seed > LARGEST_SEED:
            raise MedsegError(f"seed = {self.seed} is above {LARGEST_SEED}, the largest that random generators take")
        if 0 < self.scale < SMALLEST_SCALE:
            raise MedsegError(f"scale = {self.scale} leaves nothing of an image; 0.5 is half resolution, 0 chooses")
        checks.choices(self, amp=MODES)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain values, converting strings to the fields' types.

        Raises:
            MedsegError: unknown key (with the nearest known ones), a value of the wrong type, or one out of its limits.
        """
        known = typing.get_type_hints(cls)
        names = [f.name for f in fields(cls)]
        for key in values:
            if key not in names:
                near = difflib.get_close_matches(str(key), names, n=3) or sorted(names)
                raise MedsegError(f"{cls.__name__} has no setting {key!r}; did you mean {', '.join(near)}?")
        converted = {key: _convert(key, value, known[key]) for key, value in values.items()}
        try:
            return cls(**converted)
        except MedsegError:
            raise
        except Exception as error:  # a check that its author did not think through must not look like a broken server
            given = ", ".join(f"{key} = {value}" for key, value in converted.items())
            raise MedsegError(
                f"these settings do not work together ({type(error).__name__}: {error}): {given}"
            ) from error

    def with_overrides(self, values: Mapping[str, Any]) -> Self:
        """A copy with some settings changed, checked like `from_dict`."""
        return self.from_dict({**asdict(self), **values})

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class Arm:
    """One column of a benchmark.

    Attributes:
        name: fixed by the method's card.
        overrides: settings that differ from the preset.
        method: train this method instead of the benchmark's own.
        run: for arms that are not a training (a threshold, a copy, a timing): takes a
            `medseg.benchmark.arms.ArmContext` and returns its `ArmResult`.
        in_default: False for arms that run only when they are named.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    method: str | None = None
    run: Callable[[Any], Any] | None = None
    in_default: bool = True


@dataclass(frozen=True)
class ArmGroup:
    """Arms that are compared on one metric (`medseg bench METHOD --task NAME`, or the group's name in `--arms`).

    Attributes:
        arms: the columns.
        metric: key of the compared value.
        higher_is_better: whether a higher value is the better one.
        unit: of the value.
        timed: the value is a time or a memory, so runs take turns and have all cores.
        tested: arm, or arms, each of which is tested against each of the others; None: the last one.
        ratios: pairs of arms whose ratio of means is told, with an interval; a third entry names another metric than
            `metric`.
    """

    arms: tuple[Arm, ...]
    metric: str
    higher_is_better: bool = True
    unit: str = ""
    timed: bool = False
    tested: str | tuple[str, ...] | None = None
    ratios: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Preset:
    """A committed budget of `medseg bench` and `medseg train`.

    Attributes:
        config: settings that differ from the config's defaults.
        seeds: number of seeds of the benchmark.
        arms: arms of the default group that the benchmark runs; empty: all with `in_default`.
        labelled: labelled training cases; None: all that have a mask.
        held_out: cases kept for reporting in the benchmark; a float is a share.
        folds: cross-validation folds; 1: one hold-out set.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 3
    arms: tuple[str, ...] = ()
    labelled: int | None = None
    held_out: int | float = 0.2
    folds: int = 1


class Method(ABC):
    """A way to learn segmentation (or measurements) from cases.

    A subclass sets the class attributes and implements the abstract methods. It never sees files of the server, run
    folders or devices other than the one its network is on.

    Attributes:
        config: settings.
        labels: label name -> index 1..N, contiguous.
        network: one module that holds everything trainable, built by `build_network`.

    Class attributes beside the obvious:
        metric: the key quality figure among the values of `evaluate`.
        axes: number of spatial axes of the images, where no setting `dimension` tells it.
        markups: predictions carry points or lines; viewers are offered them as a model of their own.
        refresh: settings that follow from labels and are open again when what `conclude` keeps is renewed from today's
            labels, without iterations (`refresh` in a train request); None: there is nothing to renew.
        describes: learns without any label, and the features of its scores choose the first images to label.
        app_settings: settings of the config that differ in the app from the preset and the defaults.
        merges_instances: masks without names that number instances of one structure are learnt as one label.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    supervision: ClassVar[frozenset[Supervision]]
    config_class: ClassVar[type[MethodConfig]]
    presets: ClassVar[Mapping[str, Preset]]
    arm_groups: ClassVar[Mapping[str, ArmGroup]]  # the first group is the default
    metric: ClassVar[str] = "dice"
    axes: ClassVar[int] = 3
    markups: ClassVar[bool] = False
    describes: ClassVar[bool] = False
    refresh: ClassVar[Mapping[str, Any] | None] = None
    app_settings: ClassVar[Mapping[str, Any]] = {}
    merges_instances: ClassVar[bool] = False

    def __init__(self, config: MethodConfig, labels: Mapping[str, int]) -> None:
        if sorted(labels.values()) != list(range(1, len(labels) + 1)):
            raise MedsegError(f"labels must be numbered 1..{len(labels)} without gaps, got {dict(labels)}")
        self.config = config
        self.labels = dict(labels)
        self.network = self.build_network()

    @classmethod
    def fit_config(cls, config: MethodConfig, cases: Sequence[Case]) -> MethodConfig:
        """Fill settings that depend on the data (2D or 3D, spacing). Called once, before a run starts."""
        return config

    @classmethod
    def adopt(cls, source: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of the model in `init` that shape the network, taken where nobody set them.

        Default: `width` and `norm`, where both methods have both; nothing of a model that pretrained another method's
        network (`trunk`) than the V-Net.

        Args:
            source: the other model's settings, of this method or of another one.
        """
        if source.get("trunk", V_NET) != V_NET:
            return {}
        own = {f.name for f in fields(cls.config_class)}
        keys = {"width", "norm"}
        return {key: source[key] for key in sorted(keys)} if keys <= own and keys <= source.keys() else {}

    @classmethod
    def trunk(cls, channels: int, dimension: int, width: int, norm: str) -> Trunk:
        """The part of this method's network that self-supervised pretraining can teach, for `init` to start from.

        Args:
            channels: of the images.
            dimension: 2 or 3, of the images.
            width: channels of the finest level.
            norm: normalisation, where the network has a choice.

        Raises:
            MedsegError: there is none, or none for such images.
        """
        raise MedsegError(f"method {cls.name} has no network of its own to pretrain; trunk = {V_NET} is a V-Net")

    @classmethod
    def has_trunk(cls) -> bool:
        """Whether there is a `trunk`, if only for some images."""
        return getattr_static(cls, "trunk") is not getattr_static(Method, "trunk")

    @classmethod
    def trunk_axis(cls, spacing: Sequence[float]) -> int:
        """Which axis of an image `trunk` takes last. Default: the last one.

        Args:
            spacing: of the image on the working grid, in RAS.
        """
        return len(spacing) - 1

    @classmethod
    def trunk_image(cls, image: MetaTensor) -> MetaTensor:
        """An image (C, *grid) as `trunk` takes it, with the intensities that the network will see. Default: as it is.

        Args:
            image: on the working grid.

        Returns:
            (C', *grid) float32 on the same grid.
        """
        return image

    @classmethod
    def is_labelled(cls, case: Case) -> bool:
        """Whether a case holds what `evaluate` compares with. Default: a mask."""
        return case.label is not None

    @classmethod
    def hide_label(cls, case: Case) -> Case:
        """The case without what `is_labelled` looks for, as experiments with fewer labels show it to a method."""
        return case.without_label()

    def visible(self, case: Case) -> Case:
        """The case as a prediction that is judged may see it. Default: without its mask."""
        return case.without_label()

    @classmethod
    def derive_weak(
        cls, case: Case, labels: Mapping[str, int], config: MethodConfig | None = None
    ) -> WeakLabels | None:
        """Weak labels that follow from a finished mask, for the app to keep. Default: None, nothing follows.

        Args:
            case: with a mask.
            labels: of the mask.
            config: what the method would train with; None: the defaults.

        Raises:
            MedsegError: the files do not fit together.
        """
        return None

    @classmethod
    def group_cases(cls, cases: Sequence[Case], config: MethodConfig | None = None) -> dict[str, str]:
        """Case id -> what splits deal cases within, so that every part of a union is learnt, validated and reported.

        Default: the data set.

        Args:
            cases: all cases of a study or benchmark, labelled or not.
            config: settings of the run; None: the method's defaults.
        """
        return {case.id: case.dataset for case in cases}

    @classmethod
    def fit_labels(cls, found: Mapping[str, int]) -> dict[str, int]:
        """The labels of a run, from those found in the data: names stated there, else values in masks; may be empty.

        Default: as found. A method that learns without masks, or merges labels, overrides it.

        Raises:
            MedsegError: nothing tells the labels.
        """
        if not found:
            raise MedsegError(f"no mask tells the labels that {cls.name} should learn; add masks or a labels.json")
        return dict(found)

    @property
    @abstractmethod
    def dimension(self) -> int:
        """2 or 3: the number of spatial axes of the images."""

    @abstractmethod
    def build_network(self) -> nn.Module:
        """The network, on the CPU, deterministic under torch's current seed."""

    def initialise(self) -> None:
        """Work on the new network when a run starts afresh, for example weights from a file. Default: nothing.

        Neither a run that resumes nor a model that is loaded asks for it: what it reads may be gone by then.
        """
        return

    def inherit(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The tensors of the file in `init` as this network would call and shape them. Default: as they are.

        For layers that are told by something else than name and shape, for example a row for each label.
        """
        return tensors

    @abstractmethod
    def streams(self, cases: Sequence[Case]) -> list[Stream]:
        """Group training cases into streams. Cases without a label have `label is None`.

        Raises:
            MedsegError: the cases do not suffice to learn from; says what is missing.
        """

    @abstractmethod
    def load(self, case: Case) -> Sample:
        """Read and preprocess one case, deterministically; the result is cached. Absent labels are absent keys."""

    @abstractmethod
    def sample(self, loaded: Sample, stream: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw one training sample (crop, augmentation). All randomness comes from `generator`."""

    @abstractmethod
    def training_step(self, batch: Batch, iteration: int) -> StepOutput:
        """Loss of one batch. Called inside autocast with the network in train mode; `iteration` counts from 0."""

    def stages(self) -> tuple[int, ...]:
        """Iterations at which a stage of training begins, ascending from 0. Default: one stage.

        Stages are for training in steps that build on each other: a prior first, then frozen pseudo-labels, then a
        final network. All parts live in one network and one optimizer; what gets no gradient does not change.
        """
        return (0,)

    def begin_stage(self, start: int, training: TrainingSet) -> None:
        """Work on the whole training set before the first iteration of a stage, for example frozen pseudo-labels.

        Called again when a run resumes inside the stage, so it must give the same from the weights of any iteration of
        the stage: what it computes from must be frozen there. The network is on its device; `streams` is asked again
        afterwards, so that streams and samples may differ between stages.
        """
        return

    def conclude(self, training: TrainingSet) -> None:
        """Work on the whole training set after the last iteration, before the model is saved.

        For example statistics of normalisation layers or centroids, kept in buffers of the network. Called once.
        """
        return

    @abstractmethod
    def predict(self, loaded: Sample) -> Prediction:
        """Predict one preprocessed case on the network's grid, with the network in eval mode and without gradient."""

    @abstractmethod
    def score(self, loaded: Sample) -> Score:
        """Acquisition score of one preprocessed case; deterministic."""

    def layers(self, loaded: Sample) -> dict[str, torch.Tensor]:
        """Maps on the way to the prediction, for reports: name -> (*grid) in [0, 1], on the network's grid.

        Called like `predict`.
        """
        return {}

    def optimizer(self) -> Optimizer:
        """SGD with momentum, the habit of the semi-supervised literature; methods override it."""
        return torch.optim.SGD(self.network.parameters(), lr=self.config.learning_rate, momentum=0.9, weight_decay=1e-4)

    def scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """Learning rate over iterations; constant unless overridden. Stepped once per iteration."""
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)

    def finish(self, prediction: Prediction, case: Case) -> Prediction:
        """Last step, on the image's own grid: clean the mask, measure. Default: nothing."""
        return prediction

    def read_truth(self, case: Case, image: MetaTensor) -> MetaTensor:
        """A case's mask (1, *grid) in the numbers of `labels`, on the grid of its image, for `evaluate`."""
        return read_label(case, image, self.labels, strict=False)

    def shown_truth(self, case: Case, image: MetaTensor) -> MetaTensor | None:
        """The mask (1, *grid) that a report draws beside a prediction. Default: the case's own; None without one."""
        return None if case.label is None else self.read_truth(case, image)

    def evaluate(self, prediction: Prediction, case: Case, truth: MetaTensor | None) -> dict[str, float]:
        """Metrics of one case. Default: segmentation metrics of the mask.

        Args:
            prediction: on the image's own grid.
            case: the case.
            truth: (1, *grid) its mask, on the same grid; None where the case has none.
        """
        assert prediction.mask is not None
        assert truth is not None  # `is_labelled` asks for a mask
        picture = (image_suffix(case.image) or "").lower() in PICTURES
        spacing = None if picture else tuple(float(s) for s in truth.pixdim)
        labels = self.judged_labels(prediction, case)
        return segmentation_metrics(prediction.mask[0].numpy(), truth[0].numpy(), labels, spacing)

    @classmethod
    def incomparable(cls, config: Mapping[str, Any], before: Mapping[str, Any]) -> str:
        """Why the quality of a model does not compare with that of an earlier one; "": it does, the default.

        Args:
            config: its settings.
            before: those of the earlier one.
        """
        return ""

    def judged_labels(self, prediction: Prediction, case: Case) -> dict[str, int]:
        """Label name -> number of what `evaluate` compares in this case. Default: all labels."""
        return self.labels

    def picture(self, prediction: Prediction, image: MetaTensor, title: str = "") -> Figure | None:
        """A figure of a finished prediction on its image. Default: None, the outlines of the labels are drawn."""
        return None

    @classmethod
    def report_blocks(cls, cases: Mapping[str, Mapping[str, float]]) -> list[Block]:
        """What a benchmark's report adds about an arm, from all metrics of every case. Default: nothing."""
        return []

    def quality(self, metrics: Mapping[str, float]) -> float:
        """Key quality figure in [0, 1], higher is better; the gate compares models by its mean."""
        return metrics[self.metric]

    def qualities(self, cases: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """The quality of every case of a list, which is one figure for all of them.

        Default: `quality` of each. A method whose cases differ in what they can be judged by chooses the figure for the
        list and leaves out the cases that do not have it.
        """
        return {case: self.quality(metrics) for case, metrics in cases.items()}


def _convert(key: str, value: Any, kind: Any) -> Any:
    """`value` as `kind`; strings from the command line and lists from JSON are accepted."""
    try:
        return _coerce(value, kind)
    except (TypeError, ValueError) as error:
        shown = getattr(kind, "__name__", None) or str(kind)
        raise MedsegError(f"setting {key} = {value!r} is not of type {shown}") from error


def _coerce(value: Any, kind: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        return _coerce(value, next(a for a in arguments if a is not type(None)))
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else list(value)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_coerce(item, arguments[0]) for item in items)
        if len(items) != len(arguments):
            raise ValueError(f"expected {len(arguments)} values")
        return tuple(_coerce(item, a) for item, a in zip(items, arguments, strict=True))
    if kind is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("1", "true", "yes", "on"):
            return True
        if str(value).lower() in ("0", "false", "no", "off"):
            return False
        raise ValueError("expected true or false")
    if kind in (int, float):
        if isinstance(value, bool):
            raise TypeError("a truth value is no number")
        if kind is int and isinstance(value, float) and not value.is_integer():
            raise ValueError("expected a whole number")
        return kind(value)
    if kind is str and not isinstance(value, str | Path):
        raise TypeError("expected text")
    return kind(value)
