"""Batches as a pure function of (seed, iteration, rank).

Nothing about the data has to be stored to resume: which cases an iteration sees and how they are cropped follows from
its number. Two processes that share a batch see together exactly what one process would see.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.methods.base import Batch, Method, Sample, Stream

log = logging.getLogger(__name__)


class CaseCache:
    """Preprocessed cases in memory, least recently used first out, up to a cap.

    Args:
        method: its `load` fills the cache.
        capacity_gb: cap in GB (1e9 bytes).
    """

    def __init__(self, method: Method, capacity_gb: float) -> None:
        self.method = method
        self.capacity = int(capacity_gb * 1e9)
        self.size = 0
        self._samples: OrderedDict[str, Sample] = OrderedDict()

    def get(self, case: Case) -> Sample:
        """The preprocessed case, loaded where it is not cached."""
        if case.id in self._samples:
            self._samples.move_to_end(case.id)
            return self._samples[case.id]
        sample = self.method.load(case)
        self._samples[case.id] = sample
        self.size += _bytes(sample)
        while self.size > self.capacity and len(self._samples) > 1:
            _, oldest = self._samples.popitem(last=False)
            self.size -= _bytes(oldest)
        return sample


class IterationDataset(Dataset):
    """Item t is this rank's share of the batch of iteration t.

    Args:
        method: draws the samples.
        streams: where they come from.
        cache: preprocessed cases.
        seed: of the run.
        shard: (rank, number of processes); every stream's batch must divide evenly.
    """

    def __init__(
        self, method: Method, streams: Sequence[Stream], cache: CaseCache, seed: int, shard: tuple[int, int] = (0, 1)
    ) -> None:
        self.method, self.streams, self.cache, self.seed = method, streams, cache, seed
        self.rank, self.world = shard
        for stream in streams:
            if stream.per_batch % self.world:
                raise MedsegError(
                    f"{stream.per_batch} {stream.name} samples per batch do not divide among {self.world} processes; "
                    f"set the batch to a multiple of {self.world}"
                )

    def __len__(self) -> int:
        return self.method.config.iterations

    def __getitem__(self, iteration: int) -> Batch:
        return {stream.name: default_collate(self._draw(stream, iteration)) for stream in self.streams}

    def _draw(self, stream: Stream, iteration: int) -> list[dict[str, torch.Tensor]]:
        samples = []
        for slot in range(self.rank, stream.per_batch, self.world):
            number = iteration * stream.per_batch + slot
            case = self._case(stream, number)
            generator = seeded_generator(self.seed, stream.name, "sample", number)
            samples.append(self.method.sample(self.cache.get(case), stream.name, generator))
        return samples

    def _case(self, stream: Stream, number: int) -> Case:
        """Every case once per pass, in an order of its own for every pass."""
        a_pass, position = divmod(number, len(stream.cases))
        order = torch.randperm(len(stream.cases), generator=seeded_generator(self.seed, stream.name, "order", a_pass))
        return stream.cases[int(order[position])]


def seeded_generator(*parts: object) -> torch.Generator:
    """A generator whose seed is a hash of the parts."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def iteration_loader(dataset: IterationDataset, start: int, workers: int) -> DataLoader[Any]:
    """Batches of the iterations from `start` to the end, in order."""
    return DataLoader(
        dataset,
        batch_size=None,  # an item is a whole batch
        sampler=range(start, len(dataset)),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # else a loader draws from torch's own, and a resumed run's dropout would differ
    )


def readable(
    cache: CaseCache, cases: Sequence[Case], tick: Callable[[], None] | None = None
) -> tuple[list[Case], list[dict[str, str]]]:
    """Load every case once; leave out those that cannot be used, with the reason, so one bad file stops nothing.

    A case whose mask is at fault is left out whole: training on its image as if it had no label would hide the fault.
    """
    usable, skipped = [], []
    for case in cases:
        try:
            cache.get(case)
            usable.append(case)
        except MedsegError as error:
            log.warning("case %s is left out: %s", case.id, error)
            skipped.append({"case": case.id, "reason": str(error)})
        if tick:
            tick()
    return usable, skipped


def _bytes(sample: Sample) -> int:
    return sum(v.numel() * v.element_size() for v in sample.values() if isinstance(v, torch.Tensor))
