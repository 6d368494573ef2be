"""Phantom cases on disk, and small methods over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg.cases import Case
from medseg.methods.base import TrainingSet
from medseg.methods.dram.config import DRAMConfig
from medseg.methods.dram.method import DRAM
from medseg.phantoms.chest import LABELS, Chest, make_chest
from medseg.phantoms.study import write_grid
from medseg.transforms.io import read_image
from medseg.weak import WeakLabels

SHAPE = (40, 32, 12)


@pytest.fixture
def write_case(tmp_path: Path) -> Callable[..., tuple[Case, Chest]]:
    """Writes a phantom; `mask`, `regions` and `weak` say what of it the case knows, `look` how it is drawn."""

    def write(
        seed: int, *, mask: bool = True, regions: bool = False, weak: dict[str, object] | None = None,
        percent: list[float] | None = None, **look: Any,
    ) -> tuple[Case, Chest]:  # fmt: skip
        chest = make_chest(seed, SHAPE, percent, **look)
        parts = {"image": chest.image, "mask": chest.mask, "regions": chest.regions}
        files = {
            key: write_grid(tmp_path / f"{key}_{seed}.nii.gz", value, chest.affine) for key, value in parts.items()
        }
        case = Case(
            id=f"case_{seed}",
            image=files["image"],
            label=files["mask"] if mask else None,
            regions=files["regions"] if regions else None,
            weak=WeakLabels.model_validate(weak) if weak is not None else None,
        )
        return case, chest

    return write


@pytest.fixture
def eight_bit(tmp_path: Path) -> Callable[[Case], Case]:
    """The case with its image as 8 bits, which tell nothing of the lungs."""

    def convert(case: Case) -> Case:
        image = read_image(case.image)
        values = ((image.as_tensor()[0].numpy() + 1000) / 1200 * 255).clip(0, 255).astype(np.uint8)
        file = write_grid(tmp_path / f"eight_{case.id}.nii.gz", values, image.affine.numpy())
        return replace(case, image=file)

    return convert


@pytest.fixture
def build() -> Callable[..., DRAM]:
    """A small method; keyword arguments are settings."""

    def make(labels: dict[str, int] | None = None, seed: int = 0, **settings: object) -> DRAM:
        torch.manual_seed(seed)
        given = {"width": 4, "window": (-1000, 200), "scale": 1.0, "amp": "off", "iterations": 10, **settings}
        return DRAM(DRAMConfig.from_dict(given), labels or LABELS)

    return make


@pytest.fixture
def training_set() -> Callable[..., TrainingSet]:
    """Cases with a cache around `Method.load`."""

    def make(method: DRAM, *cases: Case) -> TrainingSet:
        kept = {case.id: method.load(case) for case in cases}
        return TrainingSet(cases, lambda case: kept[case.id])

    return make
