"""dRAM: percentages per lung region become lesion masks."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from monai.data import MetaTensor
from torch import nn

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.methods.base import (
    Batch,
    Method,
    MethodConfig,
    Prediction,
    Sample,
    Score,
    StepOutput,
    Stream,
    Supervision,
    TrainingSet,
)
from medseg.methods.dram.baselines import fit_threshold
from medseg.methods.dram.config import DRAMConfig
from medseg.methods.dram.data import (
    automatic_scale,
    draw_sample,
    guess_window,
    is_hu,
    lesion_label,
    load_case,
    lung_label,
    says_extents,
    windowed,
)
from medseg.methods.dram.derive import derive_extents
from medseg.methods.dram.judge import judge
from medseg.methods.dram.network import Backbone, DRAMNet
from medseg.methods.dram.presets import ARM_GROUPS, PRESETS
from medseg.methods.dram.pseudo import freeze_pseudo_labels
from medseg.methods.dram.reading import Reading, read_volume, stage_layers
from medseg.methods.dram.scoring import acquisition_score
from medseg.methods.dram.steps import Objective
from medseg.methods.patches import first_readable
from medseg.networks.crf import WindowedCRF
from medseg.networks.trunk import Trunk
from medseg.transforms.grid import to_canonical
from medseg.weak import WeakLabels

log = logging.getLogger(__name__)


class DRAM(Method):
    """Learns where disease is from how much of every lung region is diseased.

    Stage 1: a U-Net's lesion map p is pooled over regions; its means must lie in the readers' intervals. From
    `refine_from` on, an attention module and a dense CRF sharpen the map and learn together with it: their maps keep
    the extents and follow the map's own rank-based pseudo-label. Stage 2: a final network learns from pseudo-labels
    of the refined map, and from true masks where there are some.

    Source: Xie, Jacobs, Charbonnier, van Ginneken, arXiv 2105.11748, the first version's abstract (attention and CRF,
    then a final network); details of the released code as the dRAM card tells them.
    Deviation: whole lungs on one grid instead of lobe crops of 80^3; rank-based instead of fixed cuts; a lung map
    beside the lesion map, for images without region masks. The rest stands where each part is.
    """

    name = "dram"
    title = "dRAM: masks from extents per region"
    supervision = frozenset({Supervision.EXTENTS, Supervision.MASKS})
    config_class = DRAMConfig
    config: DRAMConfig
    network: DRAMNet
    presets: ClassVar = PRESETS
    arm_groups: ClassVar = ARM_GROUPS
    metric = "dice"
    app_settings: ClassVar[Mapping[str, Any]] = {
        "masks": "voxels",  # annotators' masks are meant to be learnt from
        "scale": 0.0,  # by the size of the study's volumes, not of the benchmark's
    }

    # -- what the data decide ----------------------------------------------------------------------------------------

    @classmethod
    def fit_config(cls, config: MethodConfig, cases: Sequence[Case]) -> MethodConfig:
        """Window and scale from the first readable image."""
        assert isinstance(config, DRAMConfig)
        image = to_canonical(first_readable(cases))
        if image.ndim != 4:
            raise MedsegError(f"dRAM needs CT volumes, but the first image has {image.ndim - 1} axes")
        window = config.window or guess_window(image)
        return config.with_overrides({"window": window, "scale": config.scale or automatic_scale(image, config)})

    @classmethod
    def is_labelled(cls, case: Case) -> bool:
        """A mask or extents: either says how good a prediction is."""
        return case.label is not None or says_extents(case)

    @classmethod
    def hide_label(cls, case: Case) -> Case:
        """The case without mask and extents."""
        weak = case.weak.model_copy(update={"extent": {}, "scores": {}}) if case.weak else None
        return replace(case, label=None, weak=weak)

    @classmethod
    def fit_labels(cls, found: Mapping[str, int]) -> dict[str, int]:
        """As found; a study without any mask learns `lesion`."""
        return dict(found) or {"lesion": 1}

    @classmethod
    def derive_weak(
        cls, case: Case, labels: Mapping[str, int], config: MethodConfig | None = None
    ) -> WeakLabels | None:
        """Extents that follow from a finished mask and regions; None where no region is known."""
        assert config is None or isinstance(config, DRAMConfig)
        return derive_extents(case, labels, config)

    @property
    def dimension(self) -> int:
        """Volumes only."""
        return 3

    @classmethod
    def trunk(cls, channels: int, dimension: int, width: int, norm: str) -> Trunk:
        """The backbone of both stages."""
        if dimension != 3 or channels != 1:
            raise MedsegError(f"trunk = dram is for grey volumes, got {dimension}D images with {channels} channels")
        return Backbone(channels, 2, width)

    @classmethod
    def trunk_image(cls, image: MetaTensor) -> MetaTensor:
        """In the default window: of HU, of 8 bits, or of the image's own range."""
        return windowed(image)

    @classmethod
    def adopt(cls, source: Mapping[str, Any]) -> dict[str, Any]:
        """The width of a backbone that was pretrained."""
        return {"width": source["width"]} if source.get("trunk") == cls.name else super().adopt(source)

    def build_network(self) -> nn.Module:
        """Backbone, attention, CRF and final network, as far as the config wants them."""
        config = self.config
        dense = config.head == "dense"
        field = WindowedCRF(config.crf_radius, config.crf_steps) if config.crf and dense else None
        attention = config.attention_form if config.attention and dense else None
        self.lesion = lesion_label(self.labels, config.lesion)
        self.lungs = lung_label(self.labels, config.lesion)
        self.pseudo: dict[str, torch.Tensor] = {}
        self.objective = Objective(config)
        return DRAMNet(
            config.width, config.head, attention, field, config.final and dense, config.candidates if dense else 0
        )

    # -- data --------------------------------------------------------------------------------------------------------

    def streams(self, cases: Sequence[Case]) -> list[Stream]:
        """One stream of every case that says something: extents, scores, or a mask that extents follow from."""
        known = tuple(case for case in cases if case.label is not None or says_extents(case))
        if not known:
            raise MedsegError(
                f"dRAM needs extents per region or masks, got neither for any of {len(cases)} images; import a table "
                "with medseg import-weak, or save a mask"
            )
        return [Stream("extents", known, self.config.batch)]

    def visible(self, case: Case) -> Case:
        """Without the mask, but with its lungs, where it has some: regions are an input (card sec. 1.1 and 2).

        Where a mask judges, stated extents go with it: obeying them would hand the prediction the reader's answer.
        Extents that no region can take, because nothing tells the lungs, go as well.
        """
        shows_lungs = case.label is not None and self.config.lungs_given and self.lungs is not None
        organ = case.label if shows_lungs and case.regions is None else case.organ
        shown = replace(case, label=None, organ=organ)
        regions = case.regions is not None or organ is not None or is_hu(self.config)
        return shown if case.label is None and regions else self.hide_label(shown)

    def load(self, case: Case) -> Sample:
        """Window, regions, extents; see `data.load_case`."""
        return load_case(case, self.config, self.labels)

    def sample(self, loaded: Sample, stream: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The lungs' box, turned and recoloured; in the final stage with its pseudo-label."""
        if loaded["case"] in self.pseudo:
            loaded = {**loaded, "pseudo": self.pseudo[loaded["case"]]}
        drawn = draw_sample(loaded, self.config, generator)
        has_mask = "label" in drawn
        drawn.setdefault("label", torch.zeros_like(drawn["regions"]))
        drawn.setdefault("pseudo", torch.full_like(drawn["regions"], 255))
        return {**drawn, "has_mask": torch.tensor(float(has_mask))}

    # -- training ----------------------------------------------------------------------------------------------------

    def stages(self) -> tuple[int, ...]:
        """Regression with its refinement, then the final network."""
        start = self.config.final_start
        return (0,) if start >= self.config.iterations else (0, start)

    def begin_stage(self, start: int, training: TrainingSet) -> None:
        """Stage 1: class weights and the head's bias from the extents. Stage 2: frozen pseudo-labels."""
        self.objective.prepare(training)
        if start == 0:
            self.objective.fit_start(self.network, training)
            return
        self.pseudo = freeze_pseudo_labels(self.network, training, self.config)

    def training_step(self, batch: Batch, iteration: int) -> StepOutput:
        """Loss of the stage that the iteration belongs to."""
        drawn = batch["extents"]
        if iteration < self.config.final_start:
            return self.objective.regression(self.network, drawn, iteration)
        if iteration == self.config.final_start and self.config.final_warm:
            self.network.warm_final()
        return self.objective.final(self.network, drawn)

    def conclude(self, training: TrainingSet) -> None:
        """The threshold baseline fits its cut to the training extents."""
        if self.config.head == "threshold":
            self.network.cut.fill_(fit_threshold(training))

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam, as released."""
        return torch.optim.Adam(self.network.parameters(), lr=self.config.learning_rate)

    def scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        """Cosine decay to a fiftieth within each stage."""
        edges = [*self.stages(), self.config.iterations]

        def factor(step: int) -> float:
            step = min(step, self.config.iterations - 1)
            begin, end = next((a, b) for a, b in itertools.pairwise(edges) if a <= step < b)
            level = 1.0 if begin == 0 else self.config.final_rate
            return level * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - begin) / (end - begin))))

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    # -- use ---------------------------------------------------------------------------------------------------------

    def read(self, loaded: Sample) -> Reading:
        """All maps of one case, for prediction, scoring and reports."""
        return read_volume(self.network, loaded, self.config)

    def predict(self, loaded: Sample) -> Prediction:
        """Lesion mask, uncertainty and extents per region, with the distance to what a reader said."""
        reading = self.read(loaded)
        affine = loaded["image"].affine
        classes = torch.zeros(1 + len(self.labels), *reading.decided.shape)
        lesion, lungs = reading.decided * reading.lungs, reading.lungs
        classes[0] = 1 - (lungs if self.lungs else lesion)
        if self.lungs:
            classes[self.lungs] = lungs - lesion
        classes[self.lesion] = lesion
        return Prediction(
            probabilities=MetaTensor(classes, affine=affine),
            uncertainty=MetaTensor(reading.entropy[None], affine=affine),
            measurements=reading.measurements(),
            warnings=reading.warnings,
        )

    def layers(self, loaded: Sample) -> dict[str, torch.Tensor]:
        """All maps in the order of the stages; before the final one the pseudo-label that it would have learnt from."""
        return stage_layers(self.read(loaded), self.config)

    def finish(self, prediction: Prediction, case: Case) -> Prediction:
        """Lungs are decided first, lesion against lung within them: at the pleura three classes share the vote."""
        if prediction.probabilities is None or self.lungs is None:
            return prediction
        prob = prediction.probabilities.as_tensor()
        inside, lesion = 1 - prob[0], prob[self.lesion]
        mask = torch.where(lesion > 0.5 * inside, self.lesion, prob[1:].argmax(dim=0) + 1)
        mask = torch.where((mask == self.lesion) & (lesion <= 0.5 * inside), self.lungs, mask)
        mask = torch.where(inside > 0.5, mask, 0).to(torch.uint8)
        return replace(prediction, mask=MetaTensor(mask[None], affine=prediction.probabilities.affine))

    def score(self, loaded: Sample) -> Score:
        """Extent residual, change by refinement, entropy; see `scoring`."""
        return acquisition_score(self.network, loaded, self.read(loaded))

    def evaluate(self, prediction: Prediction, case: Case, truth: MetaTensor | None) -> dict[str, float]:
        """Lesion overlap inside the lungs, false positives (see `judge`); without a mask, the extents' error."""
        assert prediction.mask is not None
        if truth is None:
            errors = [abs(m.value) for name, m in prediction.measurements.items() if name.startswith("residual_")]
            return {"extent_error": sum(errors) / len(errors)} if errors else {}
        return judge(prediction, truth, self.lesion, shows_lungs=self.lungs is not None)

    def quality(self, metrics: Mapping[str, float]) -> float:
        """Dice of the lesion; for a case with extents only, 1 minus their mean error as a share."""
        return metrics[self.metric] if self.metric in metrics else 1 - metrics.get("extent_error", 100.0) / 100
