"""Seg4Reg+: a mask of the vertebrae and three Cobb angles from one frontal radiograph."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from monai.data import MetaTensor
from torch import nn

from medseg.cases import Case
from medseg.errors import MedsegError, UnusableInputError
from medseg.methods.base import (
    Batch,
    Method,
    Prediction,
    Sample,
    Score,
    StepOutput,
    Stream,
    Supervision,
    TrainingSet,
)
from medseg.methods.patches import normalised_entropy
from medseg.methods.seg4reg.augment import (
    Placement,
    back_matrix,
    change_contrast,
    draw_placement,
    keep_inside,
    moved_tilts,
    place,
)
from medseg.methods.seg4reg.config import Seg4RegConfig
from medseg.methods.seg4reg.disagreement import score_paths
from medseg.methods.seg4reg.fusion import Paths
from medseg.methods.seg4reg.geometry import Limits, measure_mask, measure_quads
from medseg.methods.seg4reg.judge import judge, true_mask
from medseg.methods.seg4reg.losses import Examples, all_terms
from medseg.methods.seg4reg.network import IMAGE, SOFT, Seg4RegNetwork, vertebra_prob
from medseg.methods.seg4reg.picture import centred, contrast_channels, working_copy
from medseg.methods.seg4reg.pictures import agreement_blocks, spine_figure
from medseg.methods.seg4reg.presets import ARM_GROUPS, PRESETS
from medseg.methods.seg4reg.regressor import UNIT, Regression, as_picture
from medseg.methods.seg4reg.report import complete_prediction, path_measurements
from medseg.methods.seg4reg.segmenter import Segmenter, growing_widths
from medseg.methods.seg4reg.targets import (
    VERTEBRAE,
    close_gaps,
    draw_spine,
    given_angles,
    log_remarks,
    read_truth,
    to_grid_indices,
)
from medseg.metrics.cobb import tilts
from medseg.metrics.quads import quads_of_mask
from medseg.networks.trunk import Trunk
from medseg.reports.page import Block
from medseg.transforms.grid import spacing_of
from medseg.transforms.io import read_image
from medseg.transforms.labels import read_label

logger = logging.getLogger(__name__)


class Seg4Reg(Method):
    """Seg4Reg+ (Lin, Liu, Ma, Zheng, MICCAI 2021, arXiv 2208.12462) over Seg4Reg (Lin et al., CSI 2019).

    S segments the vertebrae and the gaps between them; R regresses the angles from an image, a mask, or what S says.
    Maps of where R looks on the true mask teach it where to look on the image (`attention`), and enhance the encoder of
    S (`gate`). The three ways to the angles, R(x), R(S(x)) and the geometry of S(x), must agree (`triangle`).

    The paper's formulas, weights and optimiser are not public knowledge; what stands here is the card's proposal, with
    every switch a benchmark arm. See docs/seg4reg.md.
    """

    name = "seg4reg"
    title = "Seg4Reg+"
    supervision = frozenset({Supervision.MASKS, Supervision.ANGLES, Supervision.LANDMARKS, Supervision.UNLABELLED})
    config_class = Seg4RegConfig
    config: Seg4RegConfig
    network: Seg4RegNetwork
    presets: ClassVar = PRESETS
    arm_groups: ClassVar = ARM_GROUPS
    metric: ClassVar[str] = "smape"
    axes: ClassVar[int] = 2
    markups: ClassVar[bool] = True
    merges_instances: ClassVar[bool] = True

    # -- labels ----------------------------------------------------------------------------------------------------

    @classmethod
    def is_labelled(cls, case: Case) -> bool:
        """Whether a mask, an angle, or the corners of the vertebrae are known."""
        return case.label is not None or _has_weak(case)

    @classmethod
    def hide_label(cls, case: Case) -> Case:
        """Without mask, angles and corners."""
        bare = case.without_label()
        if not _has_weak(case) or case.weak is None:
            return bare
        weak = case.weak.model_copy(update={"angles": {}, "landmarks": {}})
        return Case(**{**bare.__dict__, "weak": weak})

    @classmethod
    def fit_labels(cls, found: Mapping[str, int]) -> dict[str, int]:
        """One label. Several names become one, `vertebra`: where it is among them it alone, else all of them."""
        return dict(found) if len(found) == 1 else {"vertebra": 1}

    @property
    def dimension(self) -> int:
        """2."""
        return self.axes

    # -- training --------------------------------------------------------------------------------------------------

    @classmethod
    def trunk(cls, channels: int, dimension: int, width: int, norm: str) -> Trunk:
        """S."""
        if dimension != 2:
            raise MedsegError(f"trunk = seg4reg is for radiographs, got {dimension}D images; trunk = caml is for both")
        return Segmenter(growing_widths(width))

    @classmethod
    def trunk_image(cls, image: MetaTensor) -> MetaTensor:
        """Both contrasts of its grey values, as `load` makes them."""
        return contrast_channels(MetaTensor(image.as_tensor().float().mean(dim=0, keepdim=True), affine=image.affine))

    @classmethod
    def adopt(cls, source: Mapping[str, Any]) -> dict[str, Any]:
        """The channels of an S that was pretrained."""
        return {"s_widths": growing_widths(source["width"])} if source.get("trunk") == cls.name else {}

    def build_network(self) -> nn.Module:
        """S and R."""
        return Seg4RegNetwork(self.config)

    def streams(self, cases: Sequence[Case]) -> list[Stream]:
        """Cases with any label; those with none only where the triangle can use them."""
        labelled = tuple(case for case in cases if self.is_labelled(case))
        rest = tuple(case for case in cases if not self.is_labelled(case))
        idle = [case.id for case in rest if case.weak is not None and case.weak.angles]
        if idle:
            logger.warning("the angles of %s tell nothing: give pt, mt and tl together, or the largest as max", idle)
        if not labelled:
            raise MedsegError(
                f"Seg4Reg+ needs at least 1 case with a mask, angles or the corners of 17 vertebrae, got 0 among "
                f"{len(cases)}; save a label or enter angles, then train again"
            )
        streams = [Stream("labelled", labelled, self.config.batch)]
        if rest and self.config.couples and self.config.triangle:
            streams.append(Stream("unlabelled", rest, self.config.unlabelled_batch))
        return streams

    def load(self, case: Case) -> Sample:
        """Grey, square pixels, the grid's height; two contrast channels.

        Returns:
            `image` (2, x, y); where known `label` (1, x, y) uint8 (background, vertebra, gap), `angles` (3,) degrees
            with NaN where unknown, `tilts` (17,) degrees, `inside` (N, 2) corners of vertebrae in pixels of `image`.

        Raises:
            UnusableInputError: not a 2D image, or smaller than 32 pixels.
        """
        image = read_image(case.image)
        if image.ndim != 3:
            raise UnusableInputError(
                f"image {case.id} has {image.ndim - 1} axes, but Cobb angles are measured in radiographs with 2"
            )
        if min(image.shape[1:]) < 32:
            raise UnusableInputError(f"image {case.id} has {image.shape[1]} x {image.shape[2]} pixels; 32 are needed")
        grey = working_copy(image, self.config.size[1])
        loaded: Sample = {"image": contrast_channels(grey)}
        truth = read_truth(case, image)
        log_remarks(case, truth)
        if not np.isnan(truth.learnt).all():
            loaded["angles"] = torch.from_numpy(truth.learnt).float()
        size = (grey.shape[1], grey.shape[2])
        if truth.corners is not None:
            corners = to_grid_indices(truth.corners.reshape(-1, 2), image, grey).reshape(-1, 4, 2)
            loaded["tilts"] = torch.from_numpy(tilts(corners)).float()
            loaded["inside"] = torch.from_numpy(corners.reshape(-1, 2)).float()
            loaded["label"] = _label(draw_spine(corners, size), grey)
        if case.label is not None:
            self._add_mask(loaded, case, image, grey)
        return loaded

    def _add_mask(self, loaded: Sample, case: Case, image: MetaTensor, grey: MetaTensor) -> None:
        """A drawn mask wins over one drawn from corners; it gives the angles that nobody else tells."""
        given = read_label(case, image, self.labels, strict=False).as_tensor()[0].numpy()
        quads, spacing = quads_of_mask(given), spacing_of(image)
        plain = MetaTensor(torch.from_numpy(given > 0)[None].float(), affine=image.affine)
        share = working_copy(plain, grey.shape[2]).as_tensor()[0].numpy()
        corners = to_grid_indices(quads.corners.reshape(-1, 2), image, grey)
        loaded["label"] = _label(close_gaps(share > 0.5, corners.reshape(-1, 4, 2)), grey)
        if len(quads):
            loaded["inside"] = torch.from_numpy(corners).float()
        found = measure_quads(quads, (spacing[0], spacing[1]), given.shape[1], self.limits)
        if found.trusted and found.cobb is not None:
            measured = torch.tensor(found.cobb.angles)
            said = loaded.get("angles", torch.full((3,), math.nan))
            loaded["angles"] = torch.where(said.isnan(), measured, said)

    def sample(self, loaded: Sample, stream: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """One case on the networks' grid, augmented; flags tell which labels it has."""
        size = self.config.size
        placement = draw_placement(size[1], generator) if self.config.augment else Placement()
        if stream == "labelled":
            placement = keep_inside(placement, loaded.get("inside"), loaded["image"].shape[1:], size)
        image = place(loaded["image"].as_tensor(), size, placement)
        if self.config.augment:
            image = change_contrast(image, generator)
        back = back_matrix(loaded["image"].shape[1:], size, placement)
        picture = {"image": image, "back": back, "rows": torch.tensor(float(loaded["image"].shape[2]))}
        if stream == "unlabelled":
            return picture
        label = torch.zeros(1, *size, dtype=torch.uint8)
        if "label" in loaded:
            label = place(loaded["label"].as_tensor(), size, placement, mode="nearest").round().to(torch.uint8)
        angles = loaded.get("angles", torch.full((3,), math.nan)) / UNIT
        found = "tilts" in loaded
        tilted = moved_tilts(loaded["tilts"], placement) / UNIT if found else torch.zeros(VERTEBRAE)
        return {
            **picture,
            "label": label,
            "has_mask": torch.tensor(float("label" in loaded)),
            "angles": torch.nan_to_num(angles),
            "has_angles": (~torch.isnan(angles)).float(),
            "tilts": tilted,
            "has_tilts": torch.tensor(float(found)),
        }

    def training_step(self, batch: Batch, iteration: int) -> StepOutput:
        """All terms over both streams."""
        terms = all_terms(self.network, self.config, _examples(batch), iteration)
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        return StepOutput(loss, {name: term.detach() for name, term in terms.items()})

    def conclude(self, training: TrainingSet) -> None:
        """Keep the mean angles, the answer where neither network nor geometry has one."""
        known = [training.load(case)["angles"] for case in training.cases if "angles" in training.load(case)]
        if known:
            mean = torch.stack(known).double().nanmean(dim=0).nan_to_num()
            self.network.mean_angles.copy_(mean.to(self.network.mean_angles))

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW (Seg4Reg card sec. 6)."""
        config = self.config
        return torch.optim.AdamW(self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)

    def scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        """Linear warm-up, then a cosine to 0 at the last iteration."""
        total = self.config.iterations
        warm = max(1, round(self.config.warmup * total))

        def rate(iteration: int) -> float:
            if iteration < warm:
                return (iteration + 1) / warm
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (iteration - warm) / max(1, total - warm))))

        return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

    # -- use -------------------------------------------------------------------------------------------------------

    @property
    def limits(self) -> Limits:
        """Believed numbers of vertebrae."""
        return Limits(self.config.lowest_count, self.config.highest_count, self.config.fewest_vertebrae)

    def predict(self, loaded: Sample) -> Prediction:
        """Mask, its uncertainty, and the angles of the paths through R; `finish` adds geometry and the final angles."""
        image = loaded["image"]
        prob, image_angles, mask_angles = self.look(image.as_tensor())
        measurements = path_measurements({"image": image_angles, "mask": mask_angles})
        if prob is None:
            return Prediction(probabilities=None, measurements=measurements)
        both = torch.cat([1 - prob, prob])
        return Prediction(
            probabilities=MetaTensor(both, affine=image.affine),
            uncertainty=MetaTensor(normalised_entropy(both), affine=image.affine),
            measurements=measurements,
        )

    def look(
        self, image: torch.Tensor, mirror: bool = False
    ) -> tuple[torch.Tensor | None, np.ndarray | None, np.ndarray | None]:
        """What both networks say of a picture (2, x, y): vertebra probability (1, x, y), R(x) and R(S(x)) in degrees.

        A picture that is wider than the grid is cut around the vertebrae that S sees in all of it.
        """
        size, device = self.config.size, self.network.mean_angles.device
        image = image.to(device)
        image = image.flip(1) if mirror else image
        middle = self._middle(image) if image.shape[1] > size[0] and self.network.segmenter is not None else None
        window, start = centred(image, size, middle)
        regression = self.network.regress(window[None], IMAGE) if self.network.regressor is not None else None
        image_angles = _degrees(self.network, regression)
        if self.network.segmenter is None:
            return None, image_angles, None
        logits = self.network.segment(window[None], regression)
        prob = vertebra_prob(logits, self.config.gap_bias)
        if self.config.flip and not mirror:
            turned = window[None].flip(2)
            again = self.network.segment(turned, self.network.regress(turned, IMAGE) if regression else None)
            prob = (prob + vertebra_prob(again, self.config.gap_bias).flip(2)) / 2
        soft = self.network.regress(as_picture(vertebra_prob(logits)), SOFT) if regression is not None else None
        canvas = torch.zeros(1, *image.shape[1:])
        width = min(image.shape[1], size[0])
        left = max(-start, 0)
        canvas[:, left : left + width] = prob[0, :, max(start, 0) : max(start, 0) + width].float().cpu()
        return (canvas.flip(1) if mirror else canvas), image_angles, _degrees(self.network, soft)

    def _middle(self, image: torch.Tensor) -> float | None:
        """Mean x of the vertebrae in a wide picture; None where S sees none."""
        width = -(-image.shape[1] // 32) * 32
        whole, start = centred(image, (width, self.config.size[1]))
        mass = vertebra_prob(self.network.segment(whole[None]))[0, 0].sum(dim=1)
        if float(mass.sum()) < 1:
            return None
        return float((mass * torch.arange(len(mass), device=mass.device)).sum() / mass.sum()) - start

    def finish(self, prediction: Prediction, case: Case) -> Prediction:
        """Measure the mask on the image's own grid, and settle the angles."""
        return complete_prediction(prediction, self)

    def evaluate(self, prediction: Prediction, case: Case, truth: MetaTensor | None) -> dict[str, float]:
        """Errors of the angles where they are known, and of the mask where it, or the corners, are known."""
        return judge(self, prediction, case, truth)

    def shown_truth(self, case: Case, image: MetaTensor) -> MetaTensor | None:
        """A drawn mask, else one drawn from the corners."""
        drawn = true_mask(read_truth(case, image), image, super().shown_truth(case, image))
        return None if drawn is None else _label(drawn > 0, image)

    def picture(self, prediction: Prediction, image: MetaTensor, title: str = "") -> Figure | None:
        """The radiograph with vertebrae, end plates and angle lines."""
        return spine_figure(prediction, image, title, self.limits, self.config.refine_quads)

    @classmethod
    def report_blocks(cls, cases: Mapping[str, Mapping[str, float]]) -> list[Block]:
        """Bland-Altman plot and a table of the angles."""
        return agreement_blocks(cases)

    def quality(self, metrics: Mapping[str, float]) -> float:
        """1 - SMAPE / 100 where angles are known, else Dice."""
        if "smape" in metrics:
            return float(min(max(1 - metrics["smape"] / 100, 0.0), 1.0))
        return metrics.get("dice", 0.0)

    def score(self, loaded: Sample) -> Score:
        """Disagreement of the paths and of the mirrored image, vertebra count and entropy (Seg4Reg card sec. 9)."""
        image = loaded["image"].as_tensor()
        prob, image_angles, mask_angles = self.look(image)
        _, mirrored, _ = self.look(image, mirror=True)
        geometry = None
        if prob is not None:
            geometry = measure_mask(prob[0].numpy() > 0.5, (1.0, 1.0), self.limits, self.config.refine_quads)
        return score_paths(Paths(image_angles, mask_angles, geometry), mirrored, prob, has_angles="angles" in loaded)


def _has_weak(case: Case) -> bool:
    if case.weak is None:
        return False
    corners = all(str(k) in case.weak.landmarks for k in range(4 * VERTEBRAE))
    return corners or not bool(np.isnan(given_angles(case)).all())


def _label(classes: np.ndarray, grey: MetaTensor) -> MetaTensor:
    return MetaTensor(torch.from_numpy(classes.astype(np.uint8))[None], affine=grey.affine)


def _degrees(network: Seg4RegNetwork, regression: Regression | None) -> np.ndarray | None:
    return None if regression is None else network.degrees(regression)[0].detach().double().cpu().numpy()


def _examples(batch: Batch) -> Examples:
    """Both streams as one batch; cases without labels have flags 0."""
    first = batch["labelled"]
    if "unlabelled" not in batch:
        return Examples(**first)
    rest = batch["unlabelled"]
    count = len(rest["image"])
    absent = {key: value.new_zeros(count, *value.shape[1:]) for key, value in first.items()}
    return Examples(**{key: torch.cat([value, {**absent, **rest}[key]]) for key, value in first.items()})
