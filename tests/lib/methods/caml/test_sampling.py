from __future__ import annotations

import torch

from medseg.methods.caml.sampling import sample_groups


def test_draws_from_the_right_group_without_replacement() -> None:
    group = torch.randint(-1, 4, (500,), generator=torch.Generator().manual_seed(0))
    index, mask = sample_groups(group, 4, 50)
    assert mask.all()
    for k in range(4):
        assert (group[index[k]] == k).all()
        assert len(set(index[k].tolist())) == 50


def test_small_groups_give_all_they_have_first() -> None:
    group = torch.tensor([2, -1, 0, 0, 7, 2, 2])
    index, mask = sample_groups(group, 3, 4)
    assert mask.sum(1).tolist() == [2, 0, 3]
    assert sorted(index[0][mask[0]].tolist()) == [2, 3]
    assert sorted(index[2][mask[2]].tolist()) == [0, 5, 6]
    assert mask[2].tolist() == [True, True, True, False]


def test_depends_on_the_random_state_alone() -> None:
    group = torch.zeros(1000, dtype=torch.long)
    torch.manual_seed(3)
    first = sample_groups(group, 1, 10)[0]
    second = sample_groups(group, 1, 10)[0]
    torch.manual_seed(3)
    assert torch.equal(first, sample_groups(group, 1, 10)[0])
    assert not torch.equal(first, second)


def test_every_element_is_as_likely_as_any_other() -> None:
    torch.manual_seed(0)
    group = torch.arange(40) % 2
    counts = torch.zeros(40)
    for _ in range(400):
        index, _ = sample_groups(group, 2, 5)
        counts[index.flatten()] += 1
    assert counts.min() > 60  # expected 100, standard deviation below 9
    assert counts.max() < 140


def test_nothing_to_draw_from() -> None:
    index, mask = sample_groups(torch.zeros(0, dtype=torch.long), 3, 4)
    assert index.shape == mask.shape == (3, 4)
    assert not mask.any()
