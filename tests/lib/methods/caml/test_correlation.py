from __future__ import annotations

import pytest
import torch

from medseg.methods.caml.correlation import CorrelationSettings, Correlator, gather_voxels

SETTINGS = CorrelationSettings(dim=8, cases=3, capacity=16, memory=12, minimum=4, rows=16, bins=4)


def outputs(batch: int = 4, classes: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """Branches that agree on most voxels."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes, 8, 8, 4, generator=generator)
    noise = torch.randn(batch, classes, 8, 8, 4, generator=generator)
    embedding = torch.randn(batch, 5, 8, 8, 4, generator=generator)
    return {
        "logits_v": logits,
        "logits_a": logits + noise,
        "embedding_v": embedding.clone().requires_grad_(),
        "embedding_a": (embedding + 0.1).requires_grad_(),
    }


def label_of(out: dict[str, torch.Tensor], labelled: int = 2) -> torch.Tensor:
    return out["logits_v"][:labelled].argmax(1, keepdim=True)


def correlator(settings: CorrelationSettings = SETTINGS) -> Correlator:
    torch.manual_seed(0)
    return Correlator(5, 3, settings)


def test_gather_reads_the_flat_positions() -> None:
    features = torch.arange(2 * 3 * 4 * 5).float().view(2, 3, 4, 5)
    table = features.movedim(1, -1).reshape(-1, 3)
    index = torch.tensor([0, 7, 39, 20])
    assert torch.equal(gather_voxels(features, index), table[index])


def test_shapes_and_gradients() -> None:
    out, module = outputs(), correlator()
    result = module(out, label_of(out), torch.tensor([0, 2]))
    assert result["rows_v"].shape == result["rows_a"].shape == (3 * 16, 8)
    assert result["row_mask"].shape == (3 * 16,)
    assert result["memory"].shape == (3 * 12, 8)
    assert not result["memory"].requires_grad
    (result["rows_v"].sum() + result["rows_a"].sum()).backward()
    gradient = out["embedding_v"].grad
    assert gradient is not None
    assert gradient[:2].abs().sum() == 0  # labelled crops only fill the bank
    assert 0 < (gradient[2:].abs().sum(1) > 0).sum() <= 3 * 16  # and no more voxels pass the heads than are chosen


def test_only_voxels_that_both_branches_get_right_enter_the_bank() -> None:
    out, module = outputs(), correlator()
    label = label_of(out)
    label[0] = (label[0] + 1) % 3  # the first crop is wrong everywhere
    out["logits_a"][1, :, :4] = out["logits_a"][1, :, :4].roll(1, dims=0)
    module(out, label, torch.tensor([0, 2]))
    assert module.bank.filled[0].tolist() == [0, 0, 0]
    assert module.bank.filled[1].tolist() == [0, 0, 0]
    right = (out["logits_a"][1].argmax(0) == label[1, 0]) & (out["logits_v"][1].argmax(0) == label[1, 0])
    expected = [min(16, int((right & (label[1, 0] == k)).sum())) for k in range(3)]
    assert module.bank.filled[2].tolist() == expected
    features = 0.5 * (
        module.project_v(out["embedding_v"][1].flatten(1).T) + module.project_a(out["embedding_a"][1].flatten(1).T)
    )
    known = features[(right & (label[1, 0] == 1)).flatten()]
    stored = module.bank.embeddings[2, 1, : expected[1]]
    assert torch.cdist(stored, known).min(dim=1).values.max() < 1e-3


def test_rows_are_voxels_of_unlabelled_images_on_which_the_branches_agree() -> None:
    out, module = outputs(), correlator()
    agree = out["logits_v"].argmax(1) == out["logits_a"].argmax(1)
    guess = torch.where(agree, out["logits_v"].argmax(1), -1)[2:]
    index, mask = module._choose(guess, out["logits_v"][2:])
    for k in range(3):
        assert (guess.flatten()[index[k][mask[k]]] == k).all()


def test_rows_are_spread_over_confidence() -> None:
    """With 90 % certain voxels, a quarter of the rows still comes from each interval."""
    confidence = torch.cat([torch.full((900,), 0.99), torch.linspace(0.52, 0.98, 124)])
    logits = torch.stack([torch.zeros(1024), torch.logit(confidence)]).view(1, 2, 16, 16, 4)
    module = Correlator(5, 2, CorrelationSettings(rows=40, bins=4))
    index, mask = module._choose(torch.ones(1, 16, 16, 4, dtype=torch.long), logits)
    level = ((confidence[index[1]] - 0.5) * 8).long()
    assert mask[1].all()
    assert torch.bincount(level, minlength=4).tolist() == [10, 10, 10, 10]


def test_a_class_that_is_not_in_the_memory_has_no_rows() -> None:
    out, module = outputs(), correlator()
    label = label_of(out)
    label[label == 2] = 1  # class 2 is never right
    result = module(out, label, torch.tensor([0, 1]))
    assert result["memory_mask"].view(3, -1).any(1).tolist() == [True, True, False]
    assert result["row_mask"].view(3, -1).any(1).tolist() == [True, True, False]


def test_without_unlabelled_images_the_labelled_ones_are_compared() -> None:
    out, module = outputs(batch=2), correlator()
    result = module(out, label_of(out), torch.tensor([0, 1]))
    assert result["row_mask"].any()
    result["rows_v"].sum().backward()
    assert out["embedding_v"].grad is not None


def test_nothing_right_means_no_rows_and_no_memory() -> None:
    out, module = outputs(), correlator()
    result = module(out, (label_of(out) + 1) % 3, torch.tensor([0, 1]))
    assert not result["memory_mask"].any()
    assert not result["row_mask"].any()


@pytest.mark.parametrize("rows", [1, 2])
def test_heads_take_single_rows_in_train_mode(rows: int) -> None:
    assert torch.isfinite(correlator().train().project_v(torch.randn(rows, 5))).all()


def test_same_random_state_same_bank() -> None:
    banks = []
    for _ in range(2):
        out, module = outputs(), correlator()
        torch.manual_seed(7)
        module(out, label_of(out), torch.tensor([0, 1]))
        banks.append(module.bank.embeddings.clone())
    assert torch.equal(*banks)
