"""What is asked of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class BenchmarkRequest:
    """A benchmark of one method's arms; None takes the preset's value.

    Attributes:
        method: name in the table of methods.
        data: folders of cases; their list order decides which ones are labelled.
        out: folder of the summary, the report and the runs.
        preset: name of the method's preset.
        arms: names of arms, or of one group of arms; empty: the preset's.
        task: name of a group of arms.
        labelled: number of labelled training cases.
        held_out: number (or share) of the cases with a mask that are kept for reporting.
        folds: cross-validation folds; 1: one hold-out set.
        seeds: number of seeds.
        iterations: training iterations of every arm.
        scale: 0.5 works at half resolution.
        device: "cpu", "cuda" or "cuda:1"; None: a GPU where there is one.
        settings: further settings of the method; an arm's own settings override them.
        jobs: runs at a time, each in its own process with its share of the cores; None: on a CPU one per core (two
            networks of this size on one core each get half as much again done as one on two cores), one where time is
            measured or a GPU is used.
        isolate: run every training in a process of its own, which makes peak memory that of the run.
    """

    method: str
    data: tuple[Path, ...]
    out: Path
    preset: str = "cpu"
    arms: tuple[str, ...] = ()
    task: str | None = None
    labelled: int | None = None
    held_out: int | float | None = None
    folds: int | None = None
    seeds: int | None = None
    iterations: int | None = None
    scale: float | None = None
    device: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    jobs: int | None = None
    isolate: bool = True
