from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from medseg.methods.base import TrainingSet
from medseg.methods.dram.extents import SLOTS, ExtentRule, Extents
from medseg.methods.dram.method import DRAM
from medseg.methods.dram.pseudo import believed


def test_predictions_move_into_what_was_stated_and_healthy_regions_stay_empty() -> None:
    rule, extents = ExtentRule(), Extents()
    extents.tell(1, *rule.exact(0.0))
    extents.tell(2, *rule.score(0))
    extents.tell(3, *rule.score(1))
    extents.tell(4, 0.0, 0.1)

    found = believed(torch.full((SLOTS,), 0.3), extents.stacked(), rule.table[1] / 100)

    assert found[1:5].tolist() == pytest.approx([0, 0, 0.05, 0.1])
    assert bool(found[5:].isnan().all())


@pytest.mark.parametrize("kind", ["exact", "score"])
def test_healthy_regions_get_no_positive_pseudo_voxel(
    kind: str, write_case: Callable, build: Callable[..., DRAM], training_set: Callable[..., TrainingSet]
) -> None:
    method = build(masks="extents", extents=kind, iterations=10, final_share=0.5)
    training = training_set(method, write_case(0, percent=[0, 0, 0, 30, 0, 60])[0])
    loaded = training.load(training.cases[0])
    method.begin_stage(0, training)
    drawn = method.sample(loaded, "extents", torch.Generator().manual_seed(0))
    logits = torch.randn(1, *drawn["regions"].shape)

    method.begin_stage(5, training)
    online = method.objective.pseudo_target(logits, {key: value[None] for key, value in drawn.items()})

    frozen, regions = method.pseudo["case_0"], loaded["regions"].as_tensor()
    for index, percent in enumerate([0, 0, 0, 30, 0, 60], start=1):
        for label, ids in ((frozen, regions), (online[0], drawn["regions"])):
            assert bool((label[ids == index] == 1).any()) == (percent > 0)
