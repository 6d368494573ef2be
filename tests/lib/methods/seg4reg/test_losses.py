from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from medseg.losses.angles import angle_loss
from medseg.methods.seg4reg.augment import Placement, back_matrix, place
from medseg.methods.seg4reg.config import Seg4RegConfig
from medseg.methods.seg4reg.geometry import Limits
from medseg.methods.seg4reg.losses import Examples, all_terms, measured_angles, triangle_loss, triangle_weight
from medseg.methods.seg4reg.network import Seg4RegNetwork
from medseg.methods.seg4reg.regressor import Regression, as_picture
from medseg.methods.seg4reg.targets import VERTEBRA, draw_spine
from medseg.metrics.cobb import cobb_angles
from medseg.phantoms.spines import make_spine

SIZE = (64, 128)
COUPLINGS = ("attention", "gate", "triangle")


BACK = torch.eye(3)[None, :2]
"""Nothing was moved."""


def config(**settings: object) -> Seg4RegConfig:
    given = {"grid": SIZE, "s_widths": (8, 8, 8, 8, 8), "r_width": 16, "iterations": 100, "amp": "off", **settings}
    return Seg4RegConfig.from_dict(given)


def network(settings: Seg4RegConfig) -> Seg4RegNetwork:
    torch.manual_seed(0)
    return Seg4RegNetwork(settings).train()


def examples(mask: bool = True, angles: bool = True, count: int = 2) -> Examples:
    spines = [make_spine(seed, (64, 128)) for seed in range(count)]
    label = torch.stack([torch.from_numpy(draw_spine(s.corners, SIZE))[None] for s in spines])
    image = torch.stack([torch.from_numpy(s.image).float() for s in spines])[:, None].expand(-1, 2, -1, -1)
    flag = torch.ones(count)
    return Examples(
        image=(image - 100) / 40,
        label=label * mask,
        has_mask=flag * mask,
        angles=torch.tensor([s.angles for s in spines]) / 90 * angles,
        has_angles=flag[:, None].expand(-1, 3) * angles,
        tilts=torch.zeros(count, 17),
        has_tilts=flag * mask,
        back=BACK.repeat(count, 1, 1),
        rows=flag * SIZE[1],
    )


def gradient(net: Seg4RegNetwork, term: torch.Tensor, part: str) -> float:
    net.zero_grad()
    if term.requires_grad:
        term.backward(retain_graph=True)
    found = [p.grad for name, p in net.named_parameters() if name.startswith(part) and p.grad is not None]
    return float(sum(g.abs().sum() for g in found))


@pytest.mark.parametrize(("mask", "angles"), [(True, True), (True, False), (False, True), (False, False)])
def test_every_kind_of_label_gives_finite_terms_and_absent_ones_no_gradient(mask: bool, angles: bool) -> None:
    settings = config()
    net = network(settings)

    terms = all_terms(net, settings, examples(mask, angles), iteration=90)

    assert all(bool(torch.isfinite(term)) for term in terms.values())
    assert (gradient(net, terms["segmentation"], "segmenter") > 0) is mask
    assert (gradient(net, terms["angles_image"], "regressor") > 0) is angles
    assert (gradient(net, terms["angles_mask"], "regressor") > 0) is (mask and angles)
    assert (gradient(net, terms["attention"], "regressor") > 0) is mask
    assert gradient(net, terms["triangle"], "regressor") > 0  # agreement needs no label


def test_a_mixed_batch_counts_each_term_over_its_own_cases() -> None:
    settings = config(tilts=False)
    net = network(settings).eval()
    whole, bare = examples(count=1), examples(mask=False, angles=False, count=2)
    mixed = Examples(**{k: torch.cat([getattr(whole, k), getattr(bare, k)[1:]]) for k in vars(whole)})

    alone, together = (all_terms(net, settings, batch, iteration=0) for batch in (whole, mixed))

    for name in ("segmentation", "angles_image", "angles_mask", "tilts", "attention", "angles_soft"):
        assert float(together[name]) == pytest.approx(float(alone[name]), rel=1e-4), name


def test_angles_reach_s_only_through_the_triangle() -> None:
    batch = examples(mask=False)
    for triangle, iteration, expected in ((True, 90, True), (True, 0, False), (False, 90, False)):
        settings = config(triangle=triangle)
        net = network(settings)
        terms = all_terms(net, settings, batch, iteration)
        assert (gradient(net, terms["angles_soft"], "segmenter") > 0) is expected


def test_the_gate_does_not_teach_r() -> None:
    settings = config(attention=False, triangle=False)
    net = network(settings)

    terms = all_terms(net, settings, examples(), iteration=0)

    assert gradient(net, terms["segmentation"], "regressor") == 0


@pytest.mark.parametrize("only", [*COUPLINGS, "segment", "regress"])
def test_arms_have_their_terms(only: str) -> None:
    off = dict.fromkeys(COUPLINGS, False)
    if only in COUPLINGS:
        settings = config(**{**off, only: True})
    else:
        settings = config(**off, **{"segment": only == "segment", "regress": only == "regress"})

    terms = set(all_terms(network(settings), settings, examples(), iteration=50))

    common = {"segmentation", "angles_image", "angles_mask", "angles_soft", "tilts"}
    expected = {"segment": {"segmentation"}, "regress": {"angles_image", "tilts"}}.get(only, common)
    assert terms == expected | ({only} if only in ("attention", "triangle") else set())


def test_triangle_waits_and_then_ramps() -> None:
    settings = config(triangle_start=0.2, triangle_ramp=0.4, triangle_weight=2.0)

    assert triangle_weight(settings, 19) == 0
    assert 0 < triangle_weight(settings, 30) < triangle_weight(settings, 50) < 2
    assert triangle_weight(settings, 60) == 2
    assert triangle_weight(replace(settings, triangle=False), 99) == 0


def test_triangle_by_hand_with_a_mask_of_seventeen_vertebrae() -> None:
    spine = make_spine(5, (192, 512))
    prob = torch.from_numpy(draw_spine(spine.corners, (192, 512)) == VERTEBRA)[None, None].float()
    batch = Examples(**{**vars(examples(count=1)), "rows": torch.tensor([512.0])})
    target, known = measured_angles(prob, batch.back, batch.rows, Limits())
    image, soft = (regression(torch.tensor([[v, v / 2, v / 4]])) for v in (0.4, 0.6))

    loss = triangle_loss(config(), image, soft, prob, batch, 0)

    assert known.tolist() == [[1, 1, 1]]
    assert float((target * 90 - torch.tensor(spine.angles)).abs().max()) < 4
    between = 0.35 / 1.75 + 0.1 * 0.35 / 3
    to_geometry = sum(angle_loss(path.angles, target, known) for path in (image, soft))
    assert float(loss) == pytest.approx((between + float(to_geometry)) / 3, rel=1e-4)


def test_the_rule_asks_where_the_vertebrae_lay_before_the_picture_was_moved() -> None:
    size = (192, 512)
    for seed in range(40):  # until a spine whose rule depends on where it lies
        spine = make_spine(seed, size)
        here, lower = (cobb_angles(spine.corners + np.array([0.0, y]), 512).angles for y in (0, 90))
        if np.abs(np.subtract(here, lower)).max() > 10:
            break
    placement = Placement(shift=(0.0, 90.0))
    tall = (192, 700)
    prob = place(
        torch.from_numpy(draw_spine(spine.corners, size) == VERTEBRA)[None].float(), tall, placement, "nearest"
    )
    back = back_matrix(size, tall, placement)[None]

    target, _ = measured_angles(prob[None], back, torch.tensor([512.0]), Limits())

    assert np.abs(np.subtract(here, lower)).max() > 10
    assert float((target[0] * 90 - torch.tensor(here)).abs().max()) < 4


@pytest.mark.parametrize(("kind", "other"), [("image", "mask"), ("soft", "image")])
def test_in_use_r_is_normalised_as_in_training(kind: str, other: str) -> None:
    net = network(config())
    batch = examples(count=6)
    mask = (batch.label == VERTEBRA).float()
    pictures = {"image": batch.image, "soft": as_picture(0.8 * mask), "mask": as_picture(mask)}
    for _ in range(60):
        for name, picture in pictures.items():
            net.regress(picture, name)

    trained = net.regress(pictures[kind], kind).maps
    net.eval()
    own, foreign = (
        (net.regress(pictures[kind], name).maps - trained).norm() / trained.norm() for name in (kind, other)
    )

    assert own < 0.15  # statistics of a running mean
    assert foreign > 0.3


def test_a_mask_that_is_no_spine_is_no_target() -> None:
    target, known = measured_angles(torch.ones(1, 1, 40, 80), BACK, torch.tensor([80.0]), Limits())

    assert not known.any()
    assert not target.any()


class Told:
    """A network that knows the mask and answers with given angles wherever it looks."""

    regressor = segmenter = True

    def __init__(self, label: torch.Tensor, angles: torch.Tensor) -> None:
        self.label, self.angles = label, angles

    def segment(self, image: torch.Tensor, regressed: Regression | None = None) -> torch.Tensor:
        return 20.0 * torch.nn.functional.one_hot(self.label[:, 0].long(), 3).movedim(-1, 1)

    def regress(self, picture: torch.Tensor, kind: str) -> Regression:
        return regression(self.angles.repeat(len(picture) // len(self.angles), 1))


def test_agreeing_on_a_constant_costs_more_than_being_right() -> None:
    size = (192, 512)
    spines = [make_spine(seed, size) for seed in (1, 5)]
    label = torch.stack([torch.from_numpy(draw_spine(s.corners, size))[None] for s in spines])
    angles = torch.tensor([s.angles for s in spines]) / 90
    ones = torch.ones(2, 3)
    where = {"back": BACK.repeat(2, 1, 1), "rows": 512 * ones[:, 0]}
    batch = Examples(
        torch.zeros(2, 2, *size), label, ones[:, 0], angles, ones, torch.zeros(2, 17), torch.zeros(2), **where
    )
    constant = angles.mean(dim=0, keepdim=True).expand(2, -1)

    settings = config(triangle_weight=1.0, geometry_cases=2)
    right, agreed = (
        all_terms(Told(label, said), settings, batch, iteration=99)  # type: ignore[arg-type]
        for said in (angles, constant)
    )

    assert triangle_weight(settings, 99) == 1
    assert float(right["triangle"]) < 0.1
    assert float(agreed["triangle"]) > 2 * float(right["triangle"])  # geometry does not join the agreement
    total = [float(sum(terms.values())) for terms in (right, agreed)]
    assert total[1] > 0.15 > 0.05 > total[0]


def regression(angles: torch.Tensor) -> Regression:
    return Regression(angles, angles, torch.zeros(len(angles), 3, 4, 4), torch.zeros(len(angles), 17))
