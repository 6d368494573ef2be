"""CAML: correlation-aware mutual learning from a few labelled and many unlabelled images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.losses.mutual_consistency import MutualConsistencyLoss
from medseg.losses.omni_correlation import OmniCorrelationLoss
from medseg.losses.ramp import ramp_up
from medseg.losses.segmentation import SegmentationLoss
from medseg.methods.base import Batch, MethodConfig, Sample, Score, StepOutput, Stream, Supervision
from medseg.methods.caml.config import CAMLConfig
from medseg.methods.caml.correlation import Correlator
from medseg.methods.caml.disagreement import disagreement
from medseg.methods.caml.network import CAMLNet, add_attention, build_vnets
from medseg.methods.caml.perturb import copy_paste, shift_intensity
from medseg.methods.caml.presets import ARM_GROUPS, PRESETS
from medseg.methods.patches import PatchMethod
from medseg.networks.trunk import Trunk
from medseg.networks.vnet import VNet

MAX_SLOTS = 64


class CAML(PatchMethod):
    """Two small V-Nets, V (the product) and A (with cross-sample attention), learn together.

    L = ws (Ls(V) + Ls(A)) + wc(t) Lc + wo(t) Lo: a segmentation loss on the labelled crops, mutual consistency of the
    sharpened predictions on all crops, and omni-correlation consistency of unlabelled voxels towards a bank of labelled
    ones; wc and wo are ramped up by the iteration.

    Source: Gao, Zhang, Ma, Li, Zhang: Correlation-aware mutual learning for semi-supervised medical image segmentation,
    MICCAI 2023, DOI 10.1007/978-3-031-43907-0_10, arXiv 2307.06312.
    Deviation: stated where each part is: `network`, `attention`, `bank`, `correlation`, `losses`. Without unlabelled
    cases the same losses run on the labelled crops alone.
    """

    name = "caml"
    title = "CAML: mutual learning of two V-Nets"
    supervision = frozenset({Supervision.MASKS, Supervision.UNLABELLED})
    config_class = CAMLConfig
    config: CAMLConfig
    app_settings: ClassVar = {"one_piece": False}  # a clinic's labels may fall apart later, and nothing would say so
    network: CAMLNet
    presets: ClassVar = PRESETS
    arm_groups: ClassVar = ARM_GROUPS

    @classmethod
    def fit_config(cls, config: MethodConfig, cases: Sequence[Case]) -> MethodConfig:
        """One bank slot per labelled case."""
        fitted = super().fit_config(config, cases)
        assert isinstance(fitted, CAMLConfig)
        labelled = sum(case.label is not None for case in cases)
        return fitted.with_overrides({"bank_cases": fitted.bank_cases or min(max(labelled, 1), MAX_SLOTS)})

    # -- build -----------------------------------------------------------------------------------------------------

    @classmethod
    def trunk(cls, channels: int, dimension: int, width: int, norm: str) -> Trunk:
        """The V-Net of both branches, which is that of `supervised` with `network=vnet`, too."""
        return VNet(channels, 2, spatial_dims=dimension, width=width, norm=norm, dropout=0.0)

    def build_network(self) -> nn.Module:
        """V and A with different up-samplers, attention in A, heads and bank."""
        config = self.config
        self.slots: dict[str, int] = {}
        self.segmentation = SegmentationLoss(config.loss)
        self.consistency = MutualConsistencyLoss(config.mutual_temperature, config.mutual_detach)
        self.correlation = OmniCorrelationLoss(
            config.occ_temperature, config.normalise, config.symmetric, config.detach_target
        )
        student, assistant = build_vnets(
            config.channels,
            self.classes,
            spatial_dims=config.dimension,
            width=config.width,
            norm=config.norm,
            dropout=config.dropout,
            residual_assistant=config.residual_assistant,
        )
        if config.cma:
            add_attention(
                assistant,
                8 * config.width,
                heads=config.heads,
                dropout=config.attention_dropout,
                drop_batch=config.drop_batch,
            )
        correlator = Correlator(config.width, self.classes, config.correlation) if config.occ else None
        return CAMLNet(student, assistant, correlator, average=config.average > 0)

    # -- data ------------------------------------------------------------------------------------------------------

    def streams(self, cases: Sequence[Case]) -> list[Stream]:
        """Labelled and unlabelled cases, 2 + 2 per batch; without unlabelled cases only the first."""
        labelled = tuple(case for case in cases if case.label is not None)
        unlabelled = tuple(case for case in cases if case.label is None)
        if not labelled:
            raise MedsegError(
                f"CAML needs at least 1 labelled case, got 0 among {len(cases)}; save a label, then train again"
            )
        order = sorted(case.id for case in labelled)
        self.slots = {identifier: i % max(self.config.bank_cases, 1) for i, identifier in enumerate(order)}
        streams = [Stream("labelled", labelled, self.config.labelled_batch)]
        return streams + ([Stream("unlabelled", unlabelled, self.config.unlabelled_batch)] if unlabelled else [])

    def load(self, case: Case) -> Sample:
        """As every patch method; the sample also knows its case, which has a slot in the bank."""
        return super().load(case) | {"case": case.id}

    def sample(self, loaded: Sample, stream: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """A patch; from the labelled stream with its case's slot."""
        drawn = super().sample(loaded, stream, generator)
        return drawn | {"slot": torch.tensor(self.slots[loaded["case"]])} if stream == "labelled" else drawn

    # -- training --------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, iteration: int) -> StepOutput:
        """One iteration of the loss above."""
        self.network.update_average(iteration, self.config.average)
        image, label, slots = _join(batch)
        view_v, view_a = self._views(image, label.shape[0])
        outputs = self.network(view_v, label, slots, view_a)
        terms = self._terms(outputs, label)
        if self.config.copy_paste > 0 and image.shape[0] > label.shape[0]:
            terms["copy_paste"] = self._copy_paste(image, label, outputs)
        weights = self.weights(iteration)
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return StepOutput(loss, {name: term.detach() for name, term in terms.items()})

    def weights(self, iteration: int) -> dict[str, float]:
        """Weight of each term of the loss at an iteration."""
        config = self.config
        ramp = ramp_up(iteration, config.ramp * config.iterations)
        return {
            "supervised": config.supervised_weight,
            "mutual": config.mutual_weight * ramp,
            "correlation": config.occ_weight * ramp,
            "anchor": config.anchor_weight,
            "copy_paste": config.copy_paste * ramp,
        }

    def _terms(self, outputs: dict[str, torch.Tensor], label: torch.Tensor) -> dict[str, torch.Tensor]:
        logits_v, logits_a = outputs["logits_v"], outputs["logits_a"]
        labelled = label.shape[0]
        terms = {
            "supervised": self.segmentation(logits_v[:labelled], label) + self.segmentation(logits_a[:labelled], label)
        }
        if self.config.mutual:
            terms["mutual"] = self.consistency(logits_v, logits_a)
        if self.config.occ:
            keys = ("rows_v", "rows_a", "memory", "row_mask", "memory_mask")
            terms["correlation"] = self.correlation(*(outputs[key] for key in keys))
        if "anchor_mask" in outputs:
            terms["anchor"] = self._anchor(outputs)
        return terms

    def _anchor(self, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """How far both branches' correlations of labelled voxels are from their own class."""
        memory, mask = (outputs[key].unflatten(0, (self.classes, -1)) for key in ("memory", "memory_mask"))
        v, a = (
            self.correlation.anchor(outputs[key], memory, outputs["anchor_mask"], mask)
            for key in ("anchors_v", "anchors_a")
        )
        return 0.5 * (v + a)

    def _views(self, image: torch.Tensor, labelled: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What V and A see: the same images, or each its own perturbation of the unlabelled ones."""
        if self.config.perturb == "none":
            return image, image
        v, a = (torch.cat([image[:labelled], shift_intensity(image[labelled:])]) for _ in range(2))
        return v, a

    def _copy_paste(self, image: torch.Tensor, label: torch.Tensor, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Segmentation loss of both branches on crops mixed of labelled and unlabelled ones."""
        pairs = min(label.shape[0], image.shape[0] - label.shape[0])
        other = image[label.shape[0] :][:pairs]
        with torch.no_grad():
            guess = self._pseudo_label(other, slice(label.shape[0], label.shape[0] + pairs), outputs)
        mixed, target, weight = copy_paste((image[:pairs], label[:pairs].long()), (other, guess))
        mixed_outputs = self.network(mixed)
        terms = [self.segmentation(mixed_outputs[key], target, weight) for key in ("logits_v", "logits_a")]
        return torch.stack(terms).sum()

    def _pseudo_label(self, image: torch.Tensor, rows: slice, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The averaged V's opinion where there is one, else the branches' mean."""
        if self.network.average is not None:
            return self.network.average(image).argmax(dim=1, keepdim=True)
        v, a = (torch.softmax(outputs[key][rows].float(), dim=1) for key in ("logits_v", "logits_a"))
        return (v + a).argmax(dim=1, keepdim=True)

    # -- use -------------------------------------------------------------------------------------------------------

    def score(self, loaded: Sample) -> Score:
        """Disagreement of the branches and entropy of their mean, with A's attention on and dropout off.

        A attends within each window only, so the score depends on the image and on nothing else. Features for
        diversity: V's mean embedding of the predicted foreground.
        """
        sums: list[torch.Tensor] = []

        def compare(windows: torch.Tensor) -> torch.Tensor:
            logits_v, logits_a, embedding = self.network.both(windows)
            v, a = torch.softmax(logits_v.float(), dim=1), torch.softmax(logits_a.float(), dim=1)
            foreground = 1 - v[:, :1]
            sums.append(torch.cat([(embedding.float() * foreground).flatten(2).sum((0, 2)), foreground.sum()[None]]))
            return torch.cat([v, a], dim=1)

        both = self.slide(loaded["image"], compare)
        found = disagreement(both[: self.classes], both[self.classes :])
        *features, mass = torch.stack(sums).sum(dim=0).tolist()
        parts = {key: getattr(found, key) for key in ("divergence", "divergence_95", "entropy", "entropy_95")}
        return Score(found.value, found.why, parts, tuple(f / max(mass, 1e-6) for f in features))


def _join(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images of both streams, labelled first, with the labels and slots of the labelled ones."""
    labelled = batch["labelled"]
    images = [labelled["image"]] + ([batch["unlabelled"]["image"]] if "unlabelled" in batch else [])
    return torch.cat(images), labelled["label"], labelled["slot"]
