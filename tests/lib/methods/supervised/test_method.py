from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.methods.supervised.config import NETWORKS, SupervisedConfig
from medseg.methods.supervised.method import PaddedUNet, Supervised
from medseg.networks.vnet import NORMS
from medseg.phantoms.organs import make_organ


def build(seed: int = 0, **settings: object) -> Supervised:
    torch.manual_seed(seed)
    given = {"dimension": 3, "channels": 1, "patch": (32, 32, 16), "width": 4, "amp": "off", **settings}
    return Supervised(SupervisedConfig.from_dict(given), {"atrium": 1})


def phantom_batch() -> dict[str, dict[str, torch.Tensor]]:
    organs = [make_organ(seed, (32, 32, 16)) for seed in (1, 2)]
    images = torch.stack([torch.from_numpy(organ.image)[None] for organ in organs])
    labels = torch.stack([torch.from_numpy(organ.mask)[None] for organ in organs])
    return {"labelled": {"image": (images - images.mean()) / images.std(), "label": labels}}


@pytest.mark.parametrize("network", ["unet", "vnet"])
def test_overfits_a_phantom_batch(network: str) -> None:
    method, batch = build(network=network, width=8, dropout=0, norm="instance", learning_rate=0.05), phantom_batch()
    method.network.train()
    optimizer = method.optimizer()
    terms: list[float] = []
    for iteration in range(60):
        optimizer.zero_grad()
        output = method.training_step(batch, iteration)
        output.loss.backward()
        optimizer.step()
        terms.append(float(output.terms["supervised"]))

    with torch.no_grad():
        found = method.network(batch["labelled"]["image"]).argmax(dim=1, keepdim=True)

    truth = batch["labelled"]["label"]
    dice = float(2 * ((found == 1) & (truth == 1)).sum() / ((found == 1).sum() + (truth == 1).sum()))
    assert dice > 0.9
    assert terms[-1] < terms[0] / 3


def test_network_follows_the_seed() -> None:
    one, same, other = (build(seed).network.state_dict() for seed in (1, 1, 2))

    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_norm_goes_with_every_network(network: str, norm: str) -> None:
    kinds = {"batch": nn.modules.batchnorm._BatchNorm, "instance": nn.modules.instancenorm._InstanceNorm}
    others = {**kinds, "group": nn.GroupNorm}
    wanted = others.pop(norm)
    for width, labels in ((4, {"a": 1}), (6, {"a": 1, "b": 2})):
        config = SupervisedConfig(dimension=2, channels=1, patch=(32, 32), network=network, norm=norm, width=width)
        method = Supervised(config, labels)
        layers = list(method.network.modules())
        assert any(isinstance(layer, wanted) for layer in layers)
        assert not any(isinstance(layer, tuple(others.values())) for layer in layers)
        assert method.network.eval()(torch.randn(1, 1, 32, 32)).shape == (1, 1 + len(labels), 32, 32)


@pytest.mark.parametrize("grid", [(33, 17, 9), (16, 16, 16), (35, 51)])
def test_odd_grids_keep_their_size(grid: tuple[int, ...]) -> None:
    method = build(dimension=len(grid), patch=(16,) * len(grid))
    assert isinstance(method.network, PaddedUNet)
    image = torch.rand(1, 1, *grid)

    with torch.no_grad():
        one, again = (method.network.eval()(image) for _ in range(2))

    assert one.shape == (1, 2, *grid)
    assert torch.equal(one, again)


@pytest.mark.parametrize("loss", ["dice_ce", "dice"])
def test_right_logits_have_less_loss_than_wrong_ones(loss: str) -> None:
    method, batch = build(loss=loss), phantom_batch()
    truth = batch["labelled"]["label"].float()
    right = torch.cat([1 - truth, truth], dim=1) * 20

    losses = []
    for logits in (right, -right):
        method.network.forward = lambda _, logits=logits: logits  # type: ignore[method-assign]
        losses.append(float(method.training_step(batch, 0).loss))

    assert losses[0] < 0.01
    assert losses[1] > 0.9


def test_streams_take_labelled_cases_only() -> None:
    cases = [Case("a", Path("a"), Path("m")), Case("b", Path("b"))]

    (stream,) = build(labelled_batch=3).streams(cases)

    assert (stream.name, stream.per_batch, [case.id for case in stream.cases]) == ("labelled", 3, ["a"])
    with pytest.raises(MedsegError, match="needs at least 1 labelled case, got 0"):
        build().streams(cases[1:])


def test_score_is_the_entropy_inside_the_prediction() -> None:
    method = build()
    bias = torch.zeros(2)

    def logits(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.zeros_like(x[:, 0]), x[:, 0]], dim=1) + bias.reshape(1, 2, 1, 1, 1)

    method.network.forward = logits  # type: ignore[method-assign]
    image = torch.full((1, 20, 20, 16), -30.0)
    image[0, 5:10, 5:10, 5:10] = 1.0
    image[0, 12:14, 5:10, 5:10] = 30.0  # certain
    loaded = {"image": MetaTensor(image, affine=torch.eye(4))}
    p = torch.sigmoid(torch.tensor(1.0))
    entropy = float(-(p * p.log2() + (1 - p) * (1 - p).log2()))

    score = method.score(loaded)

    assert score.value == pytest.approx(entropy * 125 / 175, rel=1e-4)
    assert score.why == f"entropy {score.value:.2f} inside the predicted organ"
    bias[0] = 100
    assert method.score(loaded).value == 1.0
    assert "finds nothing" in method.score(loaded).why


def test_a_network_that_supervised_has_not_is_not_taken_over() -> None:
    shape = {"width": 12, "norm": "batch"}

    assert Supervised.adopt(shape) == {**shape, "network": "vnet"}
    assert Supervised.adopt({**shape, "network": "unet"}) == {**shape, "network": "unet"}
    assert Supervised.adopt({**shape, "network": "attention"}) == {}
