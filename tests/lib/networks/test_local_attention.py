from __future__ import annotations

import math

import pytest
import torch

from medseg.networks.local_attention import LocalAttention
from medseg.networks.neighbours import near_offsets


def make(form: str = "residual", seed: int = 0) -> LocalAttention:
    torch.manual_seed(seed)
    return LocalAttention(3, 4, form=form)


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(1, 1, 4, 3, 3), torch.randn(1, 3, 4, 3, 3), torch.ones(1, 1, 4, 3, 3)


@pytest.mark.parametrize("form", ["residual", "released"])
def test_weights_sum_to_one_inside_the_image(form: str) -> None:
    _, guidance, mask = inputs()

    weights = make(form).weights(guidance, mask)

    assert weights.shape[1] == (19 if form == "residual" else 18)
    assert torch.allclose(weights.sum(dim=1), torch.ones(1, 4, 3, 3), atol=1e-6)
    assert float(weights[0, 0, 0, 0, 0]) == 0  # a neighbour beyond the border


def test_a_constant_map_stays_constant() -> None:
    _, guidance, mask = inputs()

    assert torch.allclose(make()(torch.full((1, 1, 4, 3, 3), 0.7), guidance, mask), torch.tensor(0.7))


def test_nothing_leaks_across_the_mask() -> None:
    logits, guidance, mask = inputs()
    mask[:, :, 2:] = 0
    changed = logits.clone()
    changed[:, :, 2:] = 99

    first, second = (make()(x, guidance, mask) for x in (logits, changed))

    assert torch.equal(first[:, :, :2], second[:, :, :2])


@pytest.mark.parametrize("form", ["residual", "released"])
def test_equals_a_loop_over_voxels(form: str) -> None:
    logits, guidance, mask = inputs()
    module = make(form)
    with torch.no_grad():
        found = module(logits, guidance, mask)
        query, key = module.query(guidance)[0], module.key(guidance)[0]
        value = module.value(logits)[0] if form == "released" else logits[0]
    for i in [(0, 0, 0), (2, 1, 1), (3, 2, 0)]:
        near = [tuple(a + o for a, o in zip(i, offset, strict=True)) for offset in near_offsets()]
        near = [j for j in near if all(0 <= a < n for a, n in zip(j, (4, 3, 3), strict=True))]
        if form == "residual":
            near.append(i)
        products = torch.stack([(query[(slice(None), *i)] * key[(slice(None), *j)]).sum() for j in near])
        scores = products / 2 if form == "residual" else products.relu() / math.sqrt(len(near))
        mixed = sum(a * value[(slice(None), *j)] for a, j in zip(torch.softmax(scores, 0), near, strict=True))
        if form == "residual":
            expected = 0.5 * logits[0][(slice(None), *i)] + 0.5 * mixed
        else:
            expected = module.out.weight.view(1, 4) @ mixed + module.out.bias
        assert torch.allclose(found[0][(slice(None), *i)], expected, atol=1e-5)


def test_gradient_reaches_map_and_guidance() -> None:
    logits, guidance, mask = inputs()
    logits.requires_grad_()
    guidance.requires_grad_()

    make()(logits, guidance, mask).square().sum().backward()

    assert logits.grad is not None
    assert guidance.grad is not None
    assert float(guidance.grad.abs().sum()) > 0


def test_unknown_form() -> None:
    with pytest.raises(ValueError, match="residual, released"):
        LocalAttention(3, form="other")
