from __future__ import annotations

import pytest
import torch

from medseg.methods.seg4reg.network import attention_gate, vertebra_prob
from medseg.methods.seg4reg.segmenter import Segmenter


def test_logits_of_every_pixel_and_a_gate_of_zeros_changes_nothing() -> None:
    torch.manual_seed(0)
    network = Segmenter((8, 12, 16, 20, 24)).eval()
    image = torch.randn(2, 2, 96, 160)
    zeros, ones = torch.zeros(2, 1, 6, 10), torch.ones(2, 1, 6, 10)

    plain = network(image)

    assert plain.shape == (2, 3, 96, 160)
    assert torch.equal(network(image, attention_gate(torch.zeros(2, 3, 6, 10))), plain)
    assert torch.equal(network(image, zeros), plain)
    assert not torch.allclose(network(image, ones), plain)


def test_the_gate_is_the_mean_of_normalised_maps_without_gradient() -> None:
    maps = torch.tensor([[[[1.0, -4.0]], [[2.0, 2.0]], [[0.0, 0.0]]]], requires_grad=True)

    gate = attention_gate(maps)

    assert not gate.requires_grad
    assert torch.allclose(gate, torch.tensor([[[[(0.25 + 1) / 3, 2 / 3]]]]))


def test_a_bias_makes_gaps_of_what_is_nearly_one_and_of_nothing_else() -> None:
    vertebra, unsure, background = [0.0, 6.0, 0.0], [0.0, 1.0, 0.0], [6.0, 0.0, 0.0]
    logits = torch.tensor([vertebra, unsure, background]).T[None, :, None]  # (1, 3, 1, 3)

    plain, biased = vertebra_prob(logits)[0, 0, 0], vertebra_prob(logits, 2.0)[0, 0, 0]

    assert (plain > 0.5).tolist() == [True, True, False]
    assert (biased > 0.5).tolist() == [True, False, False]
    assert plain.tolist() == pytest.approx(torch.softmax(logits, dim=1)[0, 1, 0].tolist())
