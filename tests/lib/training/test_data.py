from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medseg.cases import Case
from medseg.errors import MedsegError, UnusableInputError
from medseg.methods.base import Stream
from medseg.training.data import CaseCache, IterationDataset, iteration_loader, readable, seeded_generator


class Numbers:
    """Stands for a method: case `c7` is the number 7; a sample adds a random number below 1."""

    def __init__(self, iterations: int = 20) -> None:
        self.config = SimpleNamespace(iterations=iterations)
        self.loaded: list[str] = []

    def load(self, case: Case) -> dict[str, Any]:
        self.loaded.append(case.id)
        if case.id == "broken":
            raise UnusableInputError("broken.nii seems damaged")
        return {"image": torch.full((1000,), float(case.id[1:]))}

    def sample(self, loaded: dict[str, Any], stream: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"image": loaded["image"][:1] + torch.rand(1, generator=generator)}


def cases(count: int) -> tuple[Case, ...]:
    return tuple(Case(f"c{i}", Path(f"c{i}.nii")) for i in range(count))


def dataset(seed: int = 0, shard: tuple[int, int] = (0, 1), per_batch: tuple[int, int] = (2, 4)) -> IterationDataset:
    method = Numbers()
    streams = [Stream("labelled", cases(3), per_batch[0]), Stream("unlabelled", cases(7), per_batch[1])]
    return IterationDataset(method, streams, CaseCache(method, 1.0), seed, shard)


def test_batch_depends_on_seed_and_iteration_alone() -> None:
    one, later = dataset(), dataset()
    for iteration in range(7):
        one[iteration]

    for name in ("labelled", "unlabelled"):
        assert torch.equal(one[7][name]["image"], later[7][name]["image"])
        assert not torch.equal(one[7][name]["image"], one[8][name]["image"])
        assert not torch.equal(one[7][name]["image"], dataset(seed=1)[7][name]["image"])


def test_shards_together_are_the_whole_batch() -> None:
    whole, shards = dataset(), [dataset(shard=(rank, 2)) for rank in (0, 1)]

    for iteration in (0, 5):
        for name in ("labelled", "unlabelled"):
            parts = [shard[iteration][name]["image"] for shard in shards]
            assert torch.equal(torch.stack(parts, dim=1).flatten(), whole[iteration][name]["image"].flatten())


def test_uneven_batch_is_one_sentence() -> None:
    with pytest.raises(
        MedsegError, match=r"2 labelled samples per batch do not divide among 4 processes.*multiple of 4"
    ):
        dataset(shard=(0, 4))


def test_every_case_once_per_pass_in_a_new_order() -> None:
    data = dataset(per_batch=(3, 7))
    passes = [data[i]["unlabelled"]["image"].floor().flatten().int().tolist() for i in range(6)]

    assert all(sorted(p) == list(range(7)) for p in passes)
    assert len({tuple(p) for p in passes}) > 3


def test_passes_cross_batches_evenly() -> None:
    data = dataset()
    seen = Counter(int(v) for i in range(14) for v in data[i]["unlabelled"]["image"].floor())

    assert set(seen.values()) == {8}


def test_loader_starts_where_it_is_told() -> None:
    data = dataset()

    batches = list(iteration_loader(data, 17, 0))

    assert len(batches) == 3
    assert torch.equal(batches[0]["labelled"]["image"], data[17]["labelled"]["image"])


def test_workers_change_nothing() -> None:
    data = dataset()

    (last,) = list(iteration_loader(data, 19, 1))

    assert torch.equal(last["unlabelled"]["image"], data[19]["unlabelled"]["image"])


def test_loader_leaves_torchs_random_numbers_alone() -> None:
    """A resumed run makes a second loader; dropout must go on as if it had not."""
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)

    next(iter(iteration_loader(dataset(), 0, 0)))

    assert torch.equal(torch.rand(2), expected)


def test_cache_drops_the_least_recently_used_beyond_its_cap() -> None:
    method = Numbers()
    cache = CaseCache(method, 8.5e-6)  # two cases of 4000 bytes
    a, b, c = cases(3)
    for case in (a, b, a, c, a, b):
        cache.get(case)

    assert method.loaded == ["c0", "c1", "c2", "c1"]  # c dropped b, b dropped c; a was always in use
    assert cache.size == 8000


def test_cache_without_room_still_serves() -> None:
    method = Numbers()
    cache = CaseCache(method, 0.0)

    assert float(cache.get(cases(2)[1])["image"][0]) == 1
    cache.get(cases(1)[0])
    assert cache.size == 4000


def test_unreadable_cases_are_named_and_left_out() -> None:
    good = cases(2)

    usable, skipped = readable(CaseCache(Numbers(), 1.0), [good[0], Case("broken", Path("broken.nii")), good[1]])

    assert usable == list(good)
    assert skipped == [{"case": "broken", "reason": "broken.nii seems damaged"}]


def test_generator_depends_on_every_part() -> None:
    draws = {parts: float(torch.rand(1, generator=seeded_generator(*parts))) for parts in ((0, "a", 1), (0, "a", 2))}

    assert float(torch.rand(1, generator=seeded_generator(0, "a", 1))) == draws[(0, "a", 1)]
    assert len(set(draws.values())) == 2
