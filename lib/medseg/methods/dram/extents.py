"""Extents of disease per region as numbers to learn from: tables, intervals, and those that follow from a mask."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from medseg.errors import UnusableInputError
from medseg.transforms.regions import by_region
from medseg.weak import WeakLabels

SLOTS = 33
"""Region ids 0..32; 0 is outside. Enough for every scheme of `medseg.transforms.regions`."""

SCORE_TABLES: Mapping[str, tuple[float, ...]] = {
    "covid": (0, 1, 5, 25, 50, 75, 100),  # dRAM card sec. 6: per cent where the scores 0..5 begin and end
    "emphysema": (0, 0.1, 1, 5, 35, 50, 100),  # dRAM card sec. 6: the scale that the released loss uses
}

KINDS = ("exact", "score", "noisy")
"""How a mask's extents are told: as they are, as the bin of a 0-5 score, or as an unsure reader would."""


@dataclass
class Extents:
    """What is known of every region of one case.

    Attributes:
        low: (SLOTS,) lower bounds in [0, 1].
        high: (SLOTS,) upper bounds.
        weight: (SLOTS,) 0 for regions of which nothing is known.
        source: reader, table, mask; "" where nobody said.
    """

    low: torch.Tensor = field(default_factory=lambda: torch.zeros(SLOTS))
    high: torch.Tensor = field(default_factory=lambda: torch.ones(SLOTS))
    weight: torch.Tensor = field(default_factory=lambda: torch.zeros(SLOTS))
    source: str = ""

    def tell(self, region: int, low: float, high: float, weight: float = 1.0) -> None:
        """Note an interval of shares."""
        self.low[region], self.high[region], self.weight[region] = low, high, weight

    def stacked(self) -> torch.Tensor:
        """(3, SLOTS): low, high, weight."""
        return torch.stack([self.low, self.high, self.weight])


@dataclass(frozen=True)
class ExtentRule:
    """How extents become intervals.

    Attributes:
        table: per cent where the scores 0..5 begin and end, 7 ascending numbers from 0 to 100.
        tolerance: half-width that an exact percentage gets, in points; small extents get a fifth of themselves.
    """

    table: tuple[float, ...] = SCORE_TABLES["covid"]
    tolerance: float = 1.0  # dRAM card sec. 6: the released band of +- 0.01

    def exact(self, percent: float) -> tuple[float, float]:
        """The interval of a percentage, as shares; nothing is exactly nothing."""
        if percent == 0:
            return 0.0, 0.0
        margin = min(self.tolerance, 0.2 * percent) + 0.05
        return max(percent - margin, 0.0) / 100, min(percent + margin, 100.0) / 100

    def score(self, score: int) -> tuple[float, float]:
        """The interval of a score, as shares."""
        return self.table[score] / 100, self.table[score + 1] / 100

    def score_of(self, percent: float) -> int:
        """The score of a percentage."""
        return max(0, min(int(np.searchsorted(self.table, percent, side="right")) - 1, len(self.table) - 2))


def parse_table(text: str) -> tuple[float, ...]:
    """A score table by its name, or as 7 ascending per cents, `0,1,5,25,50,75,100`.

    Raises:
        UnusableInputError: neither.
    """
    if text in SCORE_TABLES:
        return SCORE_TABLES[text]
    try:
        edges = tuple(float(part) for part in text.split(","))
    except ValueError:
        edges = ()
    if len(edges) != 7 or list(edges) != sorted(set(edges)) or edges[0] != 0 or edges[-1] != 100:
        raise UnusableInputError(
            f"score_table is {text!r}; give {', '.join(SCORE_TABLES)} or 7 ascending per cents from 0 to 100"
        )
    return edges


def extents_of_weak(weak: WeakLabels, names: Mapping[int, str], rule: ExtentRule, where: str) -> Extents:
    """Extents that somebody stated, as percentages, intervals or scores; a percentage wins over a score.

    Args:
        weak: what was said.
        names: ids of the region mask with their names.
        rule: makes intervals.
        where: named in errors.

    Raises:
        UnusableInputError: an extent for a region that is not there, or two different ones for one region.
    """
    found = Extents(source=weak.source or "")
    for region, score in by_region(weak.scores, names, where).items():
        found.tell(region, *rule.score(score))
    for region, value in by_region(weak.extent, names, where).items():
        interval = rule.exact(value) if not isinstance(value, tuple) else (value[0] / 100, value[1] / 100)
        if interval[0] == interval[1]:
            interval = rule.exact(100 * interval[0])
        found.tell(region, *interval)
    return found


def measured_percent(lesion: NDArray[np.bool_], regions: NDArray[np.integer]) -> dict[int, float]:
    """Percentage of lesion in every region that is not empty, by id."""
    counts = np.bincount(regions.ravel(), minlength=SLOTS)
    inside = np.bincount(regions.ravel(), weights=lesion.ravel().astype(np.float64), minlength=SLOTS)
    return {int(i): float(100 * inside[i] / counts[i]) for i in np.flatnonzero(counts) if i > 0}


def extents_of_mask(percent: Mapping[int, float], rule: ExtentRule, kind: str, noise: float, case: str) -> Extents:
    """Extents that follow from a mask, told exactly or as a reader would.

    Args:
        percent: measured percentages by region id.
        rule: makes intervals.
        kind: one of `KINDS`. "noisy" multiplies by a log-normal factor, rounds to 5 points above 10 and to 1 below, and
            allows for the reader's spread.
        noise: standard deviation of the factor's logarithm.
        case: its id; the noise of a case is always the same.
    """
    found = Extents(source="mask")
    for region, value in percent.items():
        if kind == "score":
            interval = rule.score(rule.score_of(value))
        elif kind == "noisy":
            told = _read(value, noise, f"{case}/{region}")
            interval = (told * (1 - noise) / 100, min(told * (1 + noise) + 1.0, 100.0) / 100)
        else:
            interval = rule.exact(value)
        found.tell(region, *interval)
    return found


def _read(percent: float, noise: float, key: str) -> float:
    """What an unsure reader says."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    told = percent * float(np.exp(noise * np.random.default_rng(seed).normal()))
    step = 5.0 if told > 10 else 1.0
    return float(min(round(told / step) * step, 100.0))
