"""Domain-specific batch norm: conversion, views, threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from monai.networks.nets import AttentionUnet, BasicUNet
from torch import nn

from medseg.errors import NotFoundError
from medseg.networks.domain_norm import (
    added_parameters,
    convert_batch_norm,
    copy_slot,
    domain_slots,
    domain_view,
    slot_key,
)

DOMAINS = ["vb1", "knee.3t", "type"]  # a dot, and a name that nn.ModuleDict has itself


def small_net(axes: int = 2) -> nn.Module:
    torch.manual_seed(0)
    conv, norm = (nn.Conv2d, nn.BatchNorm2d) if axes == 2 else (nn.Conv3d, nn.BatchNorm3d)
    return nn.Sequential(conv(1, 4, 3, padding=1), norm(4), nn.ReLU(), nn.Sequential(conv(4, 2, 1), norm(2)))


@pytest.mark.parametrize(
    ("network", "axes"),
    [
        (small_net(2), 2),
        (small_net(3), 3),
        (AttentionUnet(2, 1, 2, (4, 8), (2,)), 2),
        (BasicUNet(2, 1, 2, (4, 4, 4, 4, 4, 4), norm="batch"), 2),
    ],
)
def test_converted_network_equals_the_original_in_eval_mode(network: nn.Module, axes: int) -> None:
    x = torch.randn(2, 1, *(16,) * axes)
    network.train()(x)  # statistics that are not the initial ones
    expected = network.eval()(x)

    converted = convert_batch_norm(network, DOMAINS).eval()

    for name in DOMAINS:
        torch.testing.assert_close(domain_view(converted, name)(x), expected)


def test_training_one_domain_leaves_the_slots_of_the_others() -> None:
    network = convert_batch_norm(small_net(), DOMAINS).train()
    before = {name: [v.clone() for slot in domain_slots(network, name) for v in slot.state_dict().values()]
              for name in DOMAINS}  # fmt: skip
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    domain_view(network, "vb1")(3 * torch.randn(4, 1, 8, 8) + 5).square().mean().backward()
    optimizer.step()

    after = {name: [v for slot in domain_slots(network, name) for v in slot.state_dict().values()] for name in DOMAINS}
    assert all(torch.equal(a, b) for name in DOMAINS[1:] for a, b in zip(before[name], after[name], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before["vb1"], after["vb1"], strict=True))


def test_threads_with_different_domains_match_serial_calls() -> None:
    network = convert_batch_norm(small_net(), DOMAINS).eval()
    for scale, name in enumerate(DOMAINS, start=1):
        for slot in domain_slots(network, name):
            nn.init.constant_(slot.weight, scale)
    x = torch.randn(1, 1, 32, 32)
    serial = {name: domain_view(network, name)(x) for name in DOMAINS}

    jobs = DOMAINS * 20
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda name: domain_view(network, name)(x), jobs))

    assert not torch.allclose(serial["vb1"], serial["type"])
    for name, result in zip(jobs, found, strict=True):
        torch.testing.assert_close(result, serial[name])


def test_taps_keep_the_outputs_of_one_call_and_leave_the_network_alone() -> None:
    network = convert_batch_norm(small_net(), DOMAINS).eval()
    store: dict[str, torch.Tensor] = {}

    result = domain_view(network, "vb1", ["0", "3.0"], store)(torch.zeros(1, 1, 8, 8))

    assert store["0"].shape == (1, 4, 8, 8)
    assert store["3.0"].shape == result.shape == (1, 2, 8, 8)
    assert type(network[0]) is nn.Conv2d
    with pytest.raises(ValueError, match="no sub-module 'nowhere' to tap"):
        domain_view(network, "vb1", ["nowhere"], store)


def test_taps_leave_the_modes_of_the_slots_alone() -> None:
    network = convert_batch_norm(small_net(), DOMAINS).eval()
    slot = domain_slots(network, "vb1")[1].train()
    before = slot.running_mean.clone()

    domain_view(network, "vb1", ["3"], {})(torch.randn(4, 1, 8, 8) + 3)

    assert slot.training
    assert not torch.equal(slot.running_mean, before)
    assert not domain_slots(network, "type")[1].training


def test_view_shares_parameters_so_that_training_reaches_the_network() -> None:
    network = convert_batch_norm(small_net(), DOMAINS)
    domain_view(network, "vb1")(torch.randn(2, 1, 8, 8)).square().sum().backward()

    assert network[0].weight.grad is not None
    assert all(p.grad is None for slot in domain_slots(network, "type") for p in slot.parameters())


def test_unknown_domain_and_a_call_without_domain_are_refused() -> None:
    network = convert_batch_norm(small_net(), DOMAINS)
    with pytest.raises(NotFoundError, match="no domain 'hip'; this network knows vb1"):
        domain_view(network, "hip")
    with pytest.raises(NotFoundError, match="name a domain"):
        domain_view(network, None)
    with pytest.raises(RuntimeError, match="domain_view"):
        network(torch.zeros(1, 1, 8, 8))


def test_new_slot_is_a_copy_and_costs_two_numbers_per_channel() -> None:
    network = convert_batch_norm(small_net(), DOMAINS)
    domain_view(network.train(), "vb1")(torch.randn(4, 1, 8, 8))

    copy_slot(network, "vb1", "type")

    for one, two in zip(domain_slots(network, "vb1"), domain_slots(network, "type"), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert added_parameters(network, "type") == 2 * (4 + 2)


def test_no_two_domains_have_one_key() -> None:
    names = ["T1-w", "T1_w", "T1w", "T1.w", "T1_2d_w", "T1__w", "T1 w"]
    keys = {slot_key(name) for name in names}

    assert len(keys) == len(names)
    assert not any("." in key for key in keys)
    network = convert_batch_norm(torch.nn.Sequential(torch.nn.BatchNorm1d(2)), ["T1-w", "T1_w"])
    assert domain_slots(network, "T1-w")[0] is not domain_slots(network, "T1_w")[0]
