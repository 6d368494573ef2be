from __future__ import annotations

import pytest
import torch
from monai.networks.nets import UNet

from medseg.methods.caml.attention import CMABlock
from medseg.methods.caml.correlation import CorrelationSettings, Correlator
from medseg.methods.caml.network import CAMLNet, add_attention, build_vnets
from medseg.networks.hooks import HookedBranch

SETTINGS = CorrelationSettings(dim=8, cases=2, capacity=16, memory=16, minimum=1, rows=32)


def build(classes: int = 2, dims: int = 3, average: bool = False, norm: str = "batch") -> CAMLNet:
    torch.manual_seed(0)
    width = 8
    student, assistant = build_vnets(1, classes, spatial_dims=dims, width=width, norm=norm)
    add_attention(assistant, 8 * width)
    return CAMLNet(student, assistant, Correlator(width, classes, SETTINGS), average=average)


def image(batch: int = 4, dims: int = 3) -> torch.Tensor:
    grid = (32, 32, 16)[:dims]
    return torch.randn(batch, 1, *grid, generator=torch.Generator().manual_seed(1))


def test_parameter_counts_are_the_cards() -> None:
    student, assistant = build_vnets(1, 2, spatial_dims=3, width=16)
    add_attention(assistant, 128)
    count = {name: sum(p.numel() for p in net.parameters()) for name, net in (("v", student), ("a", assistant))}
    assert count["v"] == pytest.approx(9.449e6, abs=500)
    assert count["a"] == pytest.approx(10.276e6 + 0.397e6, abs=1000)


def test_eval_output_is_one_tensor_and_equals_the_plain_v() -> None:
    network = build().eval()
    assert torch.equal(network(image()), network.student(image()))


@pytest.mark.parametrize(("dims", "classes"), [(3, 2), (3, 4), (2, 3)])
def test_train_output_holds_everything_the_losses_need(dims: int, classes: int) -> None:
    network, x = build(classes, dims).train(), image(4, dims)
    label = torch.randint(classes, (2, 1, *x.shape[2:]))
    out = network(x, label, torch.tensor([0, 1]))
    assert out["logits_v"].shape == out["logits_a"].shape == (4, classes, *x.shape[2:])
    assert out["embedding_v"].shape == out["embedding_a"].shape == (4, 8, *x.shape[2:])
    assert out["rows_v"].shape == out["rows_a"].shape == (classes * 32, 8)
    assert out["memory"].shape == (classes * 16, 8)
    assert set(network(x)) == {"logits_v", "logits_a", "embedding_v", "embedding_a"}


def test_attention_sees_the_eighth_of_the_grid() -> None:
    network, shapes = build().eval(), []
    block = next(m for m in network.assistant.modules() if isinstance(m, CMABlock))
    block.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    network.both(image(2))
    assert shapes == [(2, 64, 4, 4, 2)]


def test_branches_see_their_own_views() -> None:
    network, x = build().train(), image()
    torch.manual_seed(0)
    same = network(x)
    torch.manual_seed(0)
    other = network(x, assistant_image=x + 1)
    assert torch.equal(same["logits_v"], other["logits_v"])
    assert not torch.equal(same["logits_a"], other["logits_a"])


def test_both_is_deterministic_and_independent_of_the_batch() -> None:
    network, x = build(norm="instance").eval().double(), image().double()
    with torch.no_grad():
        for parameter in next(m for m in network.assistant.modules() if isinstance(m, CMABlock)).parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        v, a, embedding = network.both(x)
        v_one, a_one, _ = network.both(x[1:2])
        with network.attention(enabled=False):
            off = network.assistant(x)
        mixed = network.both(x, "space+batch")[1]
        assert torch.equal(v, network(x))
    assert torch.allclose(v[1:2], v_one, atol=1e-8)
    assert torch.allclose(a[1:2], a_one, atol=1e-8)
    assert embedding.shape == (4, 8, 32, 32, 16)
    assert not torch.allclose(a, off, atol=1e-3)
    assert not torch.allclose(a, mixed, atol=1e-3)


def test_bank_travels_in_the_state_dict() -> None:
    network, other = build().train(), build()
    x, label = image(), torch.zeros(2, 1, 32, 32, 16, dtype=torch.long)
    for _ in range(2):
        network(x, label, torch.tensor([0, 1]))
    assert network.correlator is not None
    assert other.correlator is not None
    assert network.correlator.bank.filled.sum() > 0
    other.load_state_dict(network.state_dict(), strict=True)
    assert torch.equal(other.correlator.bank.embeddings, network.correlator.bank.embeddings)
    assert torch.equal(other.correlator.bank.filled, network.correlator.bank.filled)


def test_average_predicts_and_follows_v() -> None:
    network = build(average=True)
    assert network.average is not None
    with torch.no_grad():
        network.student.head.bias.add_(1.0)
    before = network.average.head.bias.clone()
    network.update_average(iteration=10_000, decay=0.75)
    assert torch.allclose(network.average.head.bias, before + 0.25)
    assert not network.train().average.training  # type: ignore[union-attr]
    assert torch.equal(network.eval()(image()), network.average(image()))
    assert not any(p.requires_grad for p in network.average.parameters())


def test_average_warms_up() -> None:
    network = build(average=True)
    assert network.average is not None
    with torch.no_grad():
        network.student.head.bias.add_(1.0)
    before = network.average.head.bias.clone()
    network.update_average(iteration=0, decay=0.99)
    assert torch.allclose(network.average.head.bias, before + 0.9)


def test_any_encoder_decoder_can_be_a_branch() -> None:
    def unet() -> UNet:
        return UNet(2, 1, 2, channels=(4, 8, 16, 32), strides=(2, 2, 2), num_res_units=0)

    student, assistant = HookedBranch(unet(), "model.2"), HookedBranch(unet(), "model.2")
    deepest = "network.model.1.submodule.1.submodule.1.submodule"
    add_attention(assistant, 32, where=deepest)
    features = student.with_embedding(image(1, 2))[1].shape[1]
    network = CAMLNet(student, assistant, Correlator(features, 2, SETTINGS)).train()
    out = network(image(4, 2), torch.zeros(2, 1, 32, 32, dtype=torch.long), torch.tensor([0, 1]))
    assert out["logits_a"].shape == (4, 2, 32, 32)
    assert out["rows_a"].shape == (64, 8)
    assert network.eval()(image(1, 2)).shape == (1, 2, 32, 32)
