"""Weights of other models, whatever their layers are called there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medseg.errors import NotFoundError, UnusableInputError
from medseg.methods.multidomain.pretrained import load_pretrained
from medseg.networks.domain_norm import convert_batch_norm, domain_slots


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))


def test_names_with_a_prefix_and_slots_of_domains_are_found(tmp_path: Path) -> None:
    source = nn.ModuleDict({"student": convert_batch_norm(net(), ["a", "b"])})
    for slot in domain_slots(source, "a"):
        nn.init.constant_(slot.weight, 5)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    network = net()

    copied = load_pretrained(network, tmp_path)

    assert copied == len(network.state_dict())
    assert torch.equal(network[0].weight, source["student"][0].weight)
    assert network[1].weight.tolist() == [5, 5, 5]  # the first domain's


def test_torch_files_are_read_and_other_shapes_left(tmp_path: Path) -> None:
    torch.save({"state_dict": {"0.weight": torch.ones(3, 1, 3, 3), "2.weight": torch.ones(9, 9)}}, tmp_path / "w.pt")
    network = net()
    before = network[2].weight.clone()

    assert load_pretrained(network, tmp_path / "w.pt") == 1
    assert float(network[0].weight.min()) == 1
    assert torch.equal(network[2].weight, before)


def test_what_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(b"x")
    save_file({"other": torch.ones(1)}, tmp_path / "other.safetensors")

    with pytest.raises(NotFoundError, match="does not exist"):
        load_pretrained(net(), tmp_path / "none.pt")
    with pytest.raises(UnusableInputError, match="no readable weights file"):
        load_pretrained(net(), tmp_path / "bad.pt")
    with pytest.raises(UnusableInputError, match="no tensor that fits"):
        load_pretrained(net(), tmp_path / "other.safetensors")
