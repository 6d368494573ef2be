"""Local discrimination: pixel embeddings from images, labelled or not."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from monai.data import MetaTensor
from monai.losses import DiceCELoss
from torch import nn

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.methods import method_class
from medseg.methods.base import (
    V_NET,
    Batch,
    Measurement,
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
from medseg.methods.local_discrimination import landmarks
from medseg.methods.local_discrimination.appearance import vary_appearance
from medseg.methods.local_discrimination.config import LocalDiscriminationConfig
from medseg.methods.local_discrimination.fields import body
from medseg.methods.local_discrimination.network import EmbeddingNet
from medseg.methods.local_discrimination.pictures import embedding_colours, landmark_figure
from medseg.methods.local_discrimination.points import names_of, pixel_size, voxels_of
from medseg.methods.local_discrimination.presets import ARM_GROUPS, PRESETS
from medseg.methods.local_discrimination.pretraining import MIX_SHARE, Pretraining, retrieval
from medseg.methods.local_discrimination.rendering import Ground, render_shape, take_out
from medseg.methods.local_discrimination.shapes import bound_share, read_shapes, shares_of, thickness_of
from medseg.methods.local_discrimination.views import draw_points, draw_view_of_shape, draw_views, lattice, partners
from medseg.methods.patches import PatchMethod, first_readable, normalised_entropy, random_crop
from medseg.networks.rescale import lengths_before_norms, restore_lengths
from medseg.transforms.grid import axis_last, resize, spacing_of, to_canonical
from medseg.transforms.io import read_image

log = logging.getLogger(__name__)

RENDERED = 2  # ours: pictures of shapes for each image of a batch
TEMPLATES = 8  # ours: images with landmarks that are kept; matching time grows with them


class LocalDiscrimination(PatchMethod):
    """A network learns, without labels, a unit vector for every voxel and a soft map of K regions.

    The same place in two views must match (patch discrimination), a mixed image must have mixed vectors, and region k
    of every image must resemble region k of the others (region discrimination). Other methods start from its trunk
    (`init`); with `shapes` it segments from a shape prior alone; with landmarks in one image it finds them in others.

    Source: Chen et al., Local discrimination, TPAMI 2023, arXiv 2108.09440; IPMI 2021, arXiv 2012.09333.
    Deviation: stated where each part is: `network`, `views`, `pretraining`, `shapes`, `rendering`, `matching`.
    """

    name = "local_discrimination"
    title = "Local discrimination: embeddings from unlabelled images"
    supervision = frozenset({Supervision.UNLABELLED, Supervision.LANDMARKS})
    config_class = LocalDiscriminationConfig
    config: LocalDiscriminationConfig
    network: EmbeddingNet
    presets: ClassVar = PRESETS
    arm_groups: ClassVar = ARM_GROUPS
    metric = "retrieval"
    markups = True
    describes = True
    refresh: ClassVar = {"landmarks": (), "templates": 0}

    # -- set-up ----------------------------------------------------------------------------------------------------

    @classmethod
    def fit_config(cls, config: MethodConfig, cases: Sequence[Case]) -> MethodConfig:
        """Besides axes, channels and scale: names of landmarks, number of templates, size of a pixel.

        The lengths of a patch are those of the axes as the trunk takes them.
        """
        assert isinstance(config, LocalDiscriminationConfig)
        axis = _last_axis(config, to_canonical(first_readable(cases)))
        fitted = super().fit_config(config.with_overrides({"patch": _move(config.patch, -1, axis)}), cases)
        assert isinstance(fitted, LocalDiscriminationConfig)
        marked = [case for case in cases if landmarks.is_marked(case)]
        if marked and fitted.shapes_only:
            log.warning("landmarks of %d images are not looked at: shape_share = 1 does not learn places", len(marked))
            marked = []
        if marked and fitted.trunk != V_NET:
            log.info("landmarks of %d images are not looked at: trunk = %s finds none", len(marked), fitted.trunk)
            marked = []
        if not fitted.templates and len(marked) > TEMPLATES:
            rest = ", ".join(case.id for case in marked[TEMPLATES:])
            log.warning("the first %d images with landmarks are templates; no templates: %s", TEMPLATES, rest)
        values: dict[str, object] = {
            "patch": _move(fitted.patch, axis, -1),
            "landmarks": fitted.landmarks or names_of(marked),
            "templates": fitted.templates or min(len(marked), TEMPLATES),
        }
        if fitted.shapes:
            values["shares"] = shares_of(read_shapes(Path(fitted.shapes), fitted.scale, fitted.dimension))
        if fitted.dimension == 2 and not fitted.pixel_mm:
            values["pixel_mm"] = pixel_size(cases)
        return fitted.with_overrides(values)

    @classmethod
    def adopt(cls, source: Mapping[str, Any]) -> dict[str, Any]:
        """Trunk and heads of another model of this method; of other methods width and norm."""
        shape = ("trunk", "width", "norm", "embedding", "regions")
        return {key: source[key] for key in shape} if "trunk" in source else super().adopt(source)

    @classmethod
    def is_labelled(cls, case: Case) -> bool:
        """A mask or landmarks."""
        return case.label is not None or landmarks.is_marked(case)

    @classmethod
    def hide_label(cls, case: Case) -> Case:
        """Without mask and landmarks."""
        return landmarks.without_landmarks(case.without_label())

    @classmethod
    def fit_labels(cls, found: Mapping[str, int]) -> dict[str, int]:
        """As found; none are needed."""
        return dict(found)

    def build_network(self) -> nn.Module:
        """Trunk, heads and, where there are landmarks, the bank of templates."""
        config = self.config
        self.pretraining = Pretraining(config)
        self.shapes: list[torch.Tensor] = []
        self.shapes_alone = False
        trunk = self.target.trunk(config.channels, config.dimension, config.width, config.norm)
        network = EmbeddingNet(trunk, config.embedding, config.regions)
        if self.has_landmarks:
            network.bank = landmarks.build_bank(config)
            if config.heat_iterations:
                network._heat = landmarks.build_heat_maps(config)
        self.lengths = lengths_before_norms(trunk, partial(trunk.maps, self._any_image()))
        return network

    @property
    def target(self) -> type[Method]:
        """The method whose network is pretrained."""
        return method_class(self.config.trunk)

    def _any_image(self) -> torch.Tensor:
        """A small picture of noise, as the trunk takes it."""
        axes = self.config.dimension
        noise = torch.randn((self.config.channels, *(32,) * axes), generator=torch.Generator().manual_seed(0))
        return self.target.trunk_image(MetaTensor(noise, affine=torch.eye(axes + 1))).as_tensor()[None]

    def streams(self, cases: Sequence[Case]) -> list[Stream]:
        """Every image, labelled or not."""
        if not cases:
            raise MedsegError("local discrimination needs at least 1 image, got 0")
        if self.has_landmarks and not any(map(landmarks.is_marked, cases)):
            raise MedsegError(
                f"templates = {self.config.templates}, but no training image has landmarks; mark those of one image, "
                "or leave templates and landmarks unset"
            )
        if len(cases) < self.config.image_batch:
            log.warning("%d images are few to learn places from; add unlabelled ones", len(cases))
        if self.config.shapes and not self.shapes:
            self.shapes = read_shapes(Path(self.config.shapes), self.config.scale, self.dimension)
            self.thickness = thickness_of(self.shapes)
            log.info("%d shapes from %s", len(self.shapes), self.config.shapes)
        return [Stream("images", tuple(cases), self.config.image_batch)]

    def load(self, case: Case) -> Sample:
        """Read an image onto the network's grid; its mask is not looked at.

        Grey images among colour ones (or the reverse) are converted. Returns `image` (C, *grid) float32 with the axes
        and intensities that the trunk's method will show it, `inside` (*grid) bool, the part that is not empty
        background, and `landmarks`, name -> voxel.
        """
        original = convert_channels(read_image(case.image), self.config.channels)
        self._check_image(case, original)
        canonical = to_canonical(original)
        image = axis_last(resize(canonical, self._working_size(canonical)), _last_axis(self.config, canonical))
        places = voxels_of(case, original, image)
        seen = self.target.trunk_image(image)
        inside = body(image)
        loaded = {"image": seen, "inside": inside, "landmarks": places, "case": _number(case.id)}
        return loaded | (self._ground(seen.as_tensor(), inside) if self.shapes else {})

    def _ground(self, image: torch.Tensor, inside: torch.Tensor) -> dict[str, torch.Tensor]:
        """What shapes are drawn on: the image without its own."""
        share = sum(self.config.shares) / 2
        ground = take_out(image, inside, self.thickness, share, self.config.polarity)
        return {"ground": ground.image, "detail": ground.detail, "depth": ground.depth}

    # -- training --------------------------------------------------------------------------------------------------

    def stages(self) -> tuple[int, ...]:
        """With a shape prior the last `shape_share` of the iterations learns its segmentation alone."""
        turn = self._turn_to_shapes
        return (0, turn) if 0 < turn < self.config.iterations else (0,)

    def begin_stage(self, start: int, training: TrainingSet) -> None:
        """What is drawn from here on."""
        self.shapes_alone = start >= self._turn_to_shapes

    @property
    def _turn_to_shapes(self) -> int:
        share = self.config.shape_share if self.config.shapes else 0.0
        return round((1 - share) * self.config.iterations)

    def sample(self, loaded: Sample, stream: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Two views with matched points and, where there is a shape prior, pictures of shapes."""
        drawn = {} if self.shapes_alone else self._sample_views(loaded, generator)
        return drawn | (self._sample_shapes(loaded, generator) if self.shapes else {})

    def _sample_views(self, loaded: Sample, generator: torch.Generator) -> dict[str, torch.Tensor]:
        config, image, inside = self.config, loaded["image"].as_tensor(), loaded["inside"]
        places = torch.nonzero(inside)
        start = places[int(torch.randint(len(places), (1,), generator=generator))].float()
        views = draw_views(image.shape[1:], start, config.views, generator)
        at, (points_a, points_b), valid = draw_points(views, inside, config.points, config.near, generator)
        colour = image.shape[0] == config.channels > 1  # else several channels are looks of one grey picture
        view_a, view_b = (vary_appearance(v.render(image), config.appearance, generator, colour) for v in views)
        pixels = lattice(config.patch, config.points)
        other, shown = partners(views, pixels, image.shape[1:])
        low, high = MIX_SHARE
        return {
            "view_a": view_a,
            "view_b": view_b,
            "points_a": points_a,
            "points_b": points_b,
            "places": at,
            "valid": valid,
            "pixels": pixels,
            "partners": other,
            "shown": shown,
            "share": low + (high - low) * torch.rand((), generator=generator),
            "case": torch.tensor(loaded["case"]),
        }

    def _sample_shapes(self, loaded: Sample, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Pictures (RENDERED, C, *patch) of shapes on this image, and their masks (RENDERED, 1, *patch)."""
        drawn = [self._sample_shape(loaded, generator) for _ in range(RENDERED)]
        pictures, masks = (torch.stack(tensors) for tensors in zip(*drawn, strict=True))
        return {"shape_image": pictures, "shape_mask": masks}

    def _sample_shape(self, loaded: Sample, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        shape = self.shapes[int(torch.randint(len(self.shapes), (1,), generator=generator))]
        mask = (draw_view_of_shape(shape, self.config.views, generator) > 0.5).float()
        parts = {"ground": loaded["ground"], "detail": loaded["detail"], "inside": loaded["inside"][None].float()}
        crop = random_crop(parts, self.config.patch, 0.0, generator)
        mask = mask * crop["inside"]  # nothing is asked for where a picture is empty
        ground = Ground(crop["ground"], crop["detail"], loaded["depth"])
        return render_shape(mask, ground, self.config.polarity, generator), mask

    def training_step(self, batch: Batch, iteration: int) -> StepOutput:
        """Patch discrimination and mixup; after the warm-up also regions; with a shape prior its segmentation."""
        drawn, config = batch["images"], self.config
        if iteration and iteration == self._turn_to_shapes:  # grown weights would hardly move any more
            self._restore_lengths()
        terms: dict[str, torch.Tensor] = {}
        if "view_a" in drawn:
            places = self._turn_to_shapes or config.iterations  # iterations that learn places
            terms = self.pretraining.terms(self.network, drawn, iteration >= config.warmup * places)
        if "shape_image" in drawn:
            logits = self.network(drawn["shape_image"].flatten(0, 1)).float()
            criterion = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)
            terms["shape"] = config.shape_weight * criterion(logits, drawn["shape_mask"].flatten(0, 1))
        loss = torch.stack([term for name, term in terms.items() if name != "retrieval"]).sum()
        return StepOutput(loss, {name: term.detach() for name, term in terms.items()})

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam (card sec. 6)."""
        return torch.optim.Adam(self.network.parameters(), lr=self.config.learning_rate)

    def conclude(self, training: TrainingSet) -> None:
        """Give weights back their first lengths, for those who start from them; keep the templates' windows."""
        self._restore_lengths()
        if self.has_landmarks:
            landmarks.fill_bank(self, training)
            landmarks.fit_heat_maps(self, training)

    def _restore_lengths(self) -> None:
        trunk = self.network.trunk
        image = self._any_image().to(self.network.prototypes.device)
        restore_lengths(trunk, self.lengths, partial(trunk.maps, image))

    @property
    def has_landmarks(self) -> bool:
        """Whether the model finds landmarks."""
        return bool(self.config.landmarks) and self.config.templates > 0

    # -- use -------------------------------------------------------------------------------------------------------

    def predict(self, loaded: Sample) -> Prediction:
        """Mask of the shape prior, landmarks of the templates, and how well places are told apart."""
        image = loaded["image"]
        prediction = Prediction(probabilities=None)
        if self.config.shapes:
            probabilities = self.slide(image, lambda x: torch.softmax(self.network(x).float(), dim=1))
            if self.config.shares and self.config.bound_shares:
                shape = bound_share(probabilities[1], *self.config.shares)
                probabilities = torch.stack([1 - shape, shape])
            prediction = Prediction(
                MetaTensor(probabilities, affine=image.affine),
                MetaTensor(normalised_entropy(probabilities), affine=image.affine),
            )
        if self.has_landmarks and bool(landmarks.bank_of(self).known.any()):
            markup, warnings = landmarks.predict(self, image)
            prediction.markups, prediction.warnings = (markup,), warnings
        prediction.measurements["retrieval"] = Measurement(round(100 * self.retrieval(loaded), 2), "%")
        return prediction

    @torch.no_grad()
    def retrieval(self, loaded: Sample) -> float:
        """Share of 100 places of an image that are found again in a turned, warped and re-lit view of it, in [0, 1]."""
        with torch.autocast("cpu", enabled=False):  # coordinates in half precision are off by voxels
            drawn = self._sample_views(loaded, torch.Generator().manual_seed(0))
        device = self.network.prototypes.device
        a, b = (
            self.network.vectors_at(
                self.network.maps(drawn[f"view_{v}"][None].to(device)), drawn[f"points_{v}"][None].to(device)
            )
            for v in "ab"
        )
        return float(retrieval(a, b, drawn["valid"][None].to(device)))

    @property
    def answer(self) -> tuple[str, int]:
        """Name and number of the shape prior's mask: the one label among `targets`; "shape" where it unites several."""
        named = [(name, index) for name, index in self.labels.items() if index in self.config.targets]
        return named[0] if len(named) == 1 else ("shape", 1)

    def finish(self, prediction: Prediction, case: Case) -> Prediction:
        """The mask under its name."""
        prediction = super().finish(prediction, case)
        if prediction.mask is not None:
            name, number = self.answer
            numbered = MetaTensor(prediction.mask.as_tensor() * number, affine=prediction.mask.affine)
            prediction = replace(prediction, mask=numbered, labels={name: number})
        return prediction

    def evaluate(self, prediction: Prediction, case: Case, truth: MetaTensor | None) -> dict[str, float]:
        """Dice of the shape prior's mask, distances of landmarks, retrieval: whatever the case can be judged by."""
        values = {"retrieval": prediction.measurements["retrieval"].value / 100}
        if truth is not None and prediction.mask is not None:
            united = torch.isin(truth.as_tensor().long(), torch.tensor(self.config.targets)).to(torch.uint8)
            values |= super().evaluate(prediction, case, MetaTensor(united * self.answer[1], affine=truth.affine))
        if landmarks.is_marked(case):
            values["success_4mm"] = 0.0  # a model that finds none
            for markup in prediction.markups:
                values |= landmarks.radial_errors(markup, case, self.config.pixel_mm or 1.0)
        return values

    @classmethod
    def incomparable(cls, config: Mapping[str, Any], before: Mapping[str, Any]) -> str:
        """Places are found again the more easily, the more of an image a trunk sees; less, once shapes are learnt."""
        old, new = (settings.get("trunk", V_NET) for settings in (before, config))
        if old != new:
            return f"the trunk changed from {old} to {new}"
        if all(settings.get("templates") for settings in (before, config)):
            return ""  # both are judged by the landmarks that they find
        with_shapes, had_shapes = (bool(settings.get("shapes")) for settings in (config, before))
        if with_shapes != had_shapes:
            return "masks of shapes are new" if with_shapes else "there are no masks of shapes any more"
        return ""

    def judged_labels(self, prediction: Prediction, case: Case) -> dict[str, int]:
        """The shape alone."""
        return dict([self.answer])

    def qualities(self, cases: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """One figure for all: landmarks within 4 mm where this model finds some, Dice of its shapes, else retrieval."""
        asked = {"success_4mm": self.has_landmarks, "dice": self.config.shapes is not None}
        known = {key for values in cases.values() for key in values}
        figure = next((key for key, wanted in asked.items() if wanted and key in known), "retrieval")
        return {case: values[figure] for case, values in cases.items() if figure in values}

    def picture(self, prediction: Prediction, image: MetaTensor, title: str = "") -> Figure | None:
        """The landmarks, where there are some and no mask."""
        if prediction.mask is not None or not prediction.markups or not prediction.markups[0].points:
            return None
        return landmark_figure(prediction.markups[0], image, title)

    @torch.no_grad()
    def layers(self, loaded: Sample) -> dict[str, torch.Tensor]:
        """The embedding: its three principal components in this image; none where shapes alone were learnt."""
        if self.config.shapes_only:
            return {}
        image = loaded["image"].as_tensor()[None].to(self.network.prototypes.device)
        (colours,) = embedding_colours([self.network.on_grid(image)[0][0]])
        return {f"embedding {number}": plane for number, plane in enumerate(colours, start=1)}

    @torch.no_grad()
    def score(self, loaded: Sample) -> Score:
        """How often the places of an image are not found again; its mean vector for diversity."""
        image = loaded["image"]
        if self.config.shapes_only:
            return Score(0.0, "the model learnt shapes alone and cannot rank images")
        missed = 1 - self.retrieval(loaded)
        return Score(
            missed,
            f"{100 * missed:.0f} % of its places are not recognised again",
            {"missed": missed},
            tuple(self.features(image).tolist()),
        )

    @torch.no_grad()
    def features(self, image: MetaTensor) -> torch.Tensor:
        """Descriptor of an image: mean vector in each cell of a coarse grid, so that place counts (64 or 27 cells)."""
        shrink = max(1.0, max(image.shape[1:]) / (64 if self.dimension == 3 else 160))
        small = resize(image, [max(32, round(n / shrink)) for n in image.shape[1:]])
        maps = self.network.maps(small.as_tensor()[None].to(self.network.prototypes.device))
        vectors = self.network.dense(maps, 1)[0]
        pool = nn.AdaptiveAvgPool3d(3) if self.dimension == 3 else nn.AdaptiveAvgPool2d(8)
        return nn.functional.normalize(pool(vectors).flatten().cpu(), dim=0)


def convert_channels(image: MetaTensor, channels: int) -> MetaTensor:
    """Grey as colour (repeated) or colour as grey (mean); anything else is left as it is."""
    if image.shape[0] == channels or 1 not in (image.shape[0], channels):
        return image
    plain = image.as_tensor()
    shape = (channels, *image.shape[1:])
    return MetaTensor(plain.expand(shape) if image.shape[0] == 1 else plain.mean(0, keepdim=True), affine=image.affine)


def _last_axis(config: LocalDiscriminationConfig, image: MetaTensor) -> int:
    """The axis of an image in RAS that the trunk takes last, by the spacing on the working grid."""
    return method_class(config.trunk).trunk_axis(config.spacing or spacing_of(image))


def _move(values: Sequence[int], source: int, target: int) -> tuple[int, ...]:
    """With one value taken out and put back in at another place."""
    rest = list(values)
    rest.insert(target % len(values), rest.pop(source))
    return tuple(rest)


def _number(identifier: str) -> int:
    """A number of a case that is the same in every process, and of no other case."""
    return int.from_bytes(hashlib.sha256(identifier.encode()).digest()[:7], "big")
