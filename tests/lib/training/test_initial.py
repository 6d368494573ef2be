from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medseg.errors import NotFoundError, UnusableInputError
from medseg.training.initial import load_initial


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2))


def test_matching_layers_are_copied_and_the_others_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = {"0.weight": torch.ones(4, 3), "0.bias": torch.ones(4), "1.weight": torch.ones(5, 4), "x": torch.ones(1)}
    save_file(given, tmp_path / "model.safetensors")
    net = network()
    before = net[1].weight.clone()

    account = load_initial(net, tmp_path)

    assert account == {
        "loaded": ["0.weight", "0.bias"],
        "shape_differs": ["1.weight"],
        "missing": ["1.bias", "2.weight", "2.bias"],
    }
    assert torch.equal(net[0].weight, torch.ones(4, 3))
    assert torch.equal(net[1].weight, before)


def test_file_itself_may_be_named(tmp_path: Path) -> None:
    save_file({"2.bias": torch.full((2,), 7.0)}, tmp_path / "a.safetensors")
    net = network()

    load_initial(net, tmp_path / "a.safetensors")

    assert net[2].bias.tolist() == [7.0, 7.0]


def test_nothing_to_start_from_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"does not exist; give a model.safetensors or its folder"):
        load_initial(network(), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UnusableInputError, match="no readable safetensors file"):
        load_initial(network(), tmp_path)
    save_file({"other": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UnusableInputError, match="no tensor whose name and shape match"):
        load_initial(network(), tmp_path)
