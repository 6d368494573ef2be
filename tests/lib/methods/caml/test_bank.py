from __future__ import annotations

import pytest
import torch

from medseg.methods.caml.bank import VoxelBank


def filled(counts: list[list[int]], capacity: int = 4) -> VoxelBank:
    """A bank whose entry (case, class, k) is the vector (case, class, k)."""
    bank = VoxelBank(len(counts), len(counts[0]), capacity, 3)
    count = torch.tensor(counts)
    content = torch.stack(torch.meshgrid(*map(torch.arange, (*count.shape, capacity)), indexing="ij"), dim=-1)
    bank.write(torch.arange(len(counts)), content.float(), torch.arange(capacity) < count[..., None])
    return bank


def test_draw_returns_real_entries_of_the_right_class_once() -> None:
    entries, mask = filled([[4, 1], [3, 0]]).draw(5)
    assert mask.sum(1).tolist() == [5, 1]
    drawn = [tuple(e) for e in entries[0].tolist()]
    assert len(set(drawn)) == 5
    assert all(label == 0 and k < (4 if case == 0 else 3) for case, label, k in drawn)
    assert entries[1][0].tolist() == [0, 1, 0]


def test_a_class_below_the_minimum_gives_none() -> None:
    bank = filled([[4, 2], [3, 1]])
    assert bank.draw(2, minimum=4)[1].any(1).tolist() == [True, False]
    assert bank.draw(2, minimum=3)[1].any(1).tolist() == [True, True]
    assert not bank.draw(2, minimum=99)[1].any()


def test_never_exceeds_its_cap_and_the_last_write_stays() -> None:
    bank = VoxelBank(2, 1, 4, 1)
    for value in range(20):
        bank.write(torch.tensor([1]), torch.full((1, 1, 4, 1), float(value)), torch.ones(1, 1, 4, dtype=torch.bool))
    assert bank.embeddings.shape == (2, 1, 4, 1)
    assert bank.filled.tolist() == [[0], [4]]
    assert bank.embeddings[1].flatten().tolist() == [19.0] * 4


def test_two_crops_of_one_case_leave_the_later_one() -> None:
    bank = VoxelBank(1, 1, 2, 1)
    bank.write(
        torch.tensor([0, 0]), torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, 2, 1), torch.ones(2, 1, 2).bool()
    )
    assert bank.embeddings.flatten().tolist() == [2.0, 2.0]


def test_a_class_without_voxels_keeps_its_entries() -> None:
    bank = filled([[4, 2]])
    bank.write(torch.tensor([0]), torch.full((1, 2, 4, 3), 9.0), torch.tensor([[[True] * 4, [False] * 4]]))
    assert bank.filled.tolist() == [[4, 2]]
    assert (bank.embeddings[0, 0] == 9).all()
    assert bank.embeddings[0, 1, 1].tolist() == [0, 1, 1]


def test_survives_save_and_load_and_draws_the_same() -> None:
    bank, other = filled([[4, 1], [3, 0]]), VoxelBank(2, 2, 4, 3)
    other.load_state_dict(bank.state_dict(), strict=True)
    torch.manual_seed(5)
    expected = bank.draw(3)
    torch.manual_seed(5)
    assert all(torch.equal(a, b) for a, b in zip(expected, other.draw(3), strict=True))


def test_every_process_stores_what_all_of_them_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process writes slot 1 with the negative of what this one writes to slot 0."""

    def all_gather(parts: list[torch.Tensor], tensor: torch.Tensor) -> None:
        other = tensor if tensor.dtype == torch.bool else (1 - tensor if tensor.dtype == torch.long else -tensor)
        for part, value in zip(parts, (tensor, other), strict=True):
            part.copy_(value)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
    banks = VoxelBank(2, 1, 2, 1), VoxelBank(2, 1, 2, 1, gather=False)
    for bank in banks:
        bank.write(torch.tensor([0]), torch.full((1, 1, 2, 1), 3.0), torch.ones(1, 1, 2).bool())
    assert banks[0].embeddings.flatten().tolist() == [3, 3, -3, -3]
    assert banks[1].embeddings.flatten().tolist() == [3, 3, 0, 0]


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ValueError, match="0 cases"):
        VoxelBank(0, 2, 4, 3)
