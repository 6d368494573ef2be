"""One-shot landmarks: templates into the bank, landmarks as markups, errors in mm."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from monai.data import MetaTensor
from monai.networks.utils import eval_mode

from medseg.cases import Case
from medseg.methods.base import Markup, Sample, TrainingSet
from medseg.methods.local_discrimination.config import LocalDiscriminationConfig
from medseg.methods.local_discrimination.heatmaps import Example, HeatMaps, trusted
from medseg.methods.local_discrimination.matching import Found, TemplateBank, embed_pyramid, find_landmarks, relative
from medseg.methods.local_discrimination.points import to_world, world_of
from medseg.transforms.io import read_image

if TYPE_CHECKING:
    from medseg.methods.local_discrimination.method import LocalDiscrimination

log = logging.getLogger(__name__)

POOL = 60  # ours: unmarked images that templates are matched on for the consensus
KEPT = 0.5  # ours: share of them, the most confident for each landmark, that enter it
FINDS = 120  # ours: unmarked images that the heat maps learn from
FEWEST = 8  # ours: fewer images than these have too little in common
APART = 3.0  # ours: distance, in voxels of the maps, of window and heat map at which confidence falls to 0.6

RADII = (2.0, 2.5, 3.0, 4.0)
"""Distances in mm within which a landmark counts as found (card sec. 3)."""


def is_marked(case: Case) -> bool:
    """Whether a case has landmarks."""
    return case.weak is not None and bool(case.weak.landmarks)


def without_landmarks(case: Case) -> Case:
    """The case without its landmarks; other weak labels stay."""
    if case.weak is None:
        return case
    return replace(case, weak=case.weak.model_copy(update={"landmarks": {}}))


def build_bank(config: LocalDiscriminationConfig) -> TemplateBank:
    """An empty bank."""
    return TemplateBank(len(config.landmarks), config.dimension, config.embedding, config.pyramid, config.sigma)


def bank_of(method: LocalDiscrimination) -> TemplateBank:
    """The method's bank."""
    bank = method.network.get_submodule("bank")
    assert isinstance(bank, TemplateBank)
    return bank


def build_heat_maps(config: LocalDiscriminationConfig) -> HeatMaps:
    """Untrained heat maps, of the form of the trunk that they start from."""
    return HeatMaps(config.channels, len(config.landmarks), config.dimension, config.width, config.norm)


def heat_maps_of(method: LocalDiscrimination) -> HeatMaps | None:
    """The method's heat maps, where it has some."""
    return getattr(method.network, "_heat", None)


def fill_bank(method: LocalDiscrimination, training: TrainingSet) -> None:
    """Put the first templates of the training cases into the bank, then the consensus of the unmarked ones.

    The last slot is for the consensus, where there is one.
    """
    network, config, bank = method.network, method.config, bank_of(method)
    was_training = network.training
    network.eval()
    bank.clear(config.templates + config.consensus)
    names = {name: index for index, name in enumerate(config.landmarks)}
    templates: list[str] = []
    for case in training.cases:
        if len(templates) == config.templates:
            break
        loaded = training.load(case) if is_marked(case) else {}
        points = {names[name]: point for name, point in loaded.get("landmarks", {}).items() if name in names}
        if points:
            image = loaded["image"]
            bank.put(len(templates), embed_pyramid(network, image, config.pyramid), points, image.shape[1:])
            templates.append(case.id)
    pool = [case for case in training.cases if not is_marked(case)][:POOL]
    if config.consensus and templates and pool:
        _fill_consensus(method, [training.load(case)["image"] for case in pool])
    network.train(was_training)
    if templates:
        log.info("templates of the landmarks: %s", ", ".join(templates))
    else:
        log.warning("no training image has one of the landmarks %s inside it: none is found", ", ".join(names))


def fit_heat_maps(method: LocalDiscrimination, training: TrainingSet) -> None:
    """Train the heat maps on all marked images, and on what the bank finds in the unmarked ones."""
    heat, bank, network = heat_maps_of(method), bank_of(method), method.network
    if heat is None or not bool(bank.known.any()):
        return
    marked = [case for case in training.cases if is_marked(case)]
    pool = [case for case in training.cases if not is_marked(case)][:FINDS]
    if len(marked) + len(pool) < FEWEST:
        log.info("no heat maps: %d images are few, %d are needed", len(marked) + len(pool), FEWEST)
        return
    heat.look_at(training.load((marked + pool)[0])["image"].shape[1:])
    with eval_mode(network):
        examples = _finds(method, heat, training, pool)
    weight = max([1.0, *(float(e.trust.max()) for e in examples)])  # a person's mark counts as the surest find
    examples += [_mark(method, heat, training.load(case), weight) for case in marked]
    heat.fit(examples, network.trunk, method.config.heat_iterations, method.config.seed)


def _finds(method: LocalDiscrimination, heat: HeatMaps, training: TrainingSet, pool: Sequence[Case]) -> list[Example]:
    """Unmarked images with what the bank finds in them."""
    if not pool:
        return []
    known = bank_of(method).known.any(dim=0).cpu()
    examples, confidence = [], []
    for case in pool:
        image = training.load(case)["image"]
        found = match(method, image)
        examples.append(heat.example(image, found.points.cpu(), torch.zeros(0)))
        confidence.append(found.confidence.cpu())
    trust = trusted(torch.stack(confidence), known)
    return [replace(example, trust=weights) for example, weights in zip(examples, trust, strict=True)]


def _mark(method: LocalDiscrimination, heat: HeatMaps, loaded: Sample, weight: float) -> Example:
    """A marked image; a landmark that it has not has no weight."""
    places, names = loaded["landmarks"], method.config.landmarks
    nowhere = torch.zeros(loaded["image"].ndim - 1)
    points = torch.stack([places.get(name, nowhere) for name in names])
    trust = torch.tensor([weight * (name in places) for name in names])
    return heat.example(loaded["image"], points, trust, marked=True)


def match(method: LocalDiscrimination, image: MetaTensor) -> Found:
    """What the bank finds in an image."""
    config = method.config
    maps = embed_pyramid(method.network, image, config.pyramid)
    return find_landmarks(bank_of(method), maps, image.shape[1:], config.search, config.matching)


def find(method: LocalDiscrimination, image: MetaTensor) -> Found:
    """Landmarks of an image: the heat maps' where they are trained, else the bank's.

    Two ways to the same place make it sure: where the heat maps' answer is far from the bank's, or spread out, the
    confidence falls.
    """
    found, heat = match(method, image), heat_maps_of(method)
    if heat is None or not heat.ready:
        return found
    points, mass = heat.find(image, found.points)
    apart = (points - found.points).norm(dim=1) / heat.factor
    return Found(points, found.confidence * mass * torch.exp(-0.5 * (apart / APART) ** 2), found.cycle)


def _fill_consensus(method: LocalDiscrimination, images: Sequence[MetaTensor]) -> None:
    """The mean window of every landmark over the pool's confident matches, as one more template.

    One image's window holds what is peculiar to that image; what many images share stays in the mean. Ours.
    """
    network, config, bank = method.network, method.config, bank_of(method)
    patches, places, trust = [], [], []
    for image in images:
        maps = embed_pyramid(network, image, config.pyramid)
        found = find_landmarks(bank, maps, image.shape[1:], config.search, config.matching)
        shares = relative(found.points, image.shape[1:])
        patches.append(torch.stack([bank.windows(level, shares) for level in maps]).half().cpu())
        places.append(shares.cpu())
        trust.append(found.confidence.cpu())
    confidence = torch.stack(trust)  # (images, L)
    keep = max(1, round(KEPT * len(images)))
    chosen = torch.zeros_like(confidence).scatter_(0, confidence.topk(keep, dim=0).indices, 1.0) / keep
    axes = config.dimension
    known = bank.known.any(dim=0)
    weights = chosen.reshape(len(images), 1, -1, *(1,) * (axes + 1))
    mean = sum((p.float() * w for p, w in zip(patches, weights, strict=True)), torch.zeros(()))
    bank.patches[:, -1] = mean.to(bank.patches)
    bank.places[-1] = (torch.stack(places) * chosen[..., None]).sum(dim=0).to(bank.places)
    bank.known[-1] = known


def predict(method: LocalDiscrimination, image: MetaTensor) -> tuple[Markup, tuple[str, ...]]:
    """Landmarks of an image as fiducials, and a warning that names those that are unsure."""
    config, bank = method.config, bank_of(method)
    found = find(method, image)
    kept = [index for index in range(len(config.landmarks)) if bool(bank.known[:, index].any())]
    world = to_world(found.points.cpu(), image)
    confidence = [round(float(found.confidence[index]), 3) for index in kept]
    markup = Markup(
        kind="Fiducial",
        name="landmarks",
        points=tuple(tuple(round(float(x), 3) for x in world[index]) for index in kept),
        labels=tuple(config.landmarks[index] for index in kept),
        confidence=tuple(confidence),
    )
    unsure = [config.landmarks[i] for i, c in zip(kept, confidence, strict=True) if c < config.confident]
    if not unsure:
        return markup, ()
    return markup, (f"{len(unsure)} of {len(kept)} landmarks are unsure, look at them first: {', '.join(unsure)}",)


def radial_errors(markup: Markup, case: Case, pixel_mm: float) -> dict[str, float]:
    """Mean radial error and share of landmarks within 2, 2.5, 3 and 4 mm.

    Args:
        markup: fiducials labelled by name.
        case: with the true landmarks.
        pixel_mm: size of a picture's pixel; volumes are in mm already.
    """
    original = read_image(case.image)
    unit = pixel_mm if original.ndim == 3 else 1.0
    found = dict(zip(markup.labels, markup.points, strict=True))
    truth = {name: point for name, point in world_of(case, original).items() if name in found}
    if not truth:
        return {}
    errors = [unit * math.dist(found[name], point.tolist()) for name, point in truth.items()]
    return error_table(errors)


def error_table(errors: list[float]) -> dict[str, float]:
    """`radial_error_mm` and `success_<r>mm` of distances in mm."""
    values = torch.tensor(errors, dtype=torch.float64)
    table = {"radial_error_mm": float(values.mean())}
    return table | {f"success_{radius:g}mm": float((values <= radius).double().mean()) for radius in RADII}
