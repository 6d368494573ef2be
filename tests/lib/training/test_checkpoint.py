from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.training.checkpoint import load_checkpoint, random_state, save_checkpoint, set_random_state


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def test_random_state_survives_the_file(tmp_path: Path) -> None:
    draw()
    random.gauss(0, 1)  # leaves a second number behind, which is state too
    save_checkpoint(tmp_path / "c.pt", {"random": random_state()})
    expected = [draw() for _ in range(3)]
    draw()

    content = load_checkpoint(tmp_path / "c.pt")
    assert content is not None
    set_random_state(content["random"])

    assert [draw() for _ in range(3)] == expected


def test_optimizer_and_network_survive_bit_for_bit(tmp_path: Path) -> None:
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "c.pt", {"network": network.state_dict(), "optimizer": optimizer.state_dict()})

    content = load_checkpoint(tmp_path / "c.pt")
    assert content is not None

    assert torch.equal(content["network"]["weight"], network.weight)
    momentum = content["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, torch.ones(2, 3))


@pytest.mark.parametrize("keep", [0, 100, 0.7])
def test_truncated_checkpoint_gives_way_to_the_one_before(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "c.pt"
    for iteration in (1, 2):
        save_checkpoint(path, {"iteration": iteration, "weights": torch.ones(500)})
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: int(keep if keep >= 1 else keep * size)])

    content = load_checkpoint(path)

    assert content is not None
    assert content["iteration"] == 1


def test_interrupted_write_leaves_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"iteration": 1})

    with pytest.raises(Exception, match=r"cannot pickle|Can't pickle|local object"):
        save_checkpoint(path, {"iteration": 2, "bad": lambda: None})

    content = load_checkpoint(path)
    assert content is not None
    assert content["iteration"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.pt", "c.pt.previous"]


def test_nothing_readable_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "c.pt") is None
    (tmp_path / "c.pt").write_bytes(b"x")
    assert load_checkpoint(tmp_path / "c.pt") is None


def test_disk_without_hard_links_still_keeps_the_previous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    for iteration in (1, 2):
        save_checkpoint(tmp_path / "c.pt", {"iteration": iteration})

    assert load_checkpoint(tmp_path / "c.pt") == {"iteration": 2}
    (tmp_path / "c.pt").unlink()
    assert load_checkpoint(tmp_path / "c.pt") == {"iteration": 1}
