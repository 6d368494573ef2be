"""Extents that follow from a finished mask and its regions, as weak labels."""

from __future__ import annotations

from collections.abc import Mapping

from medseg.cases import Case
from medseg.methods.dram.config import DRAMConfig
from medseg.methods.dram.data import guess_window, read_facts
from medseg.methods.dram.extents import measured_percent
from medseg.transforms.grid import to_canonical
from medseg.transforms.io import read_image
from medseg.weak import WeakLabels


def derive_extents(case: Case, labels: Mapping[str, int], settings: DRAMConfig | None = None) -> WeakLabels | None:
    """Percentages per region of a case with a mask, `source` "mask", by nobody yet; the case's other weak labels stay.

    Regions come from the region mask, else from the mask's lungs, if a label is called so; None where neither is there.

    Args:
        case: with a mask.
        labels: of the mask.
        settings: which tell lesion and regions; None: the defaults.
    """
    if case.label is None or (case.regions is None and not any("lung" in name.casefold() for name in labels)):
        return None  # a mask of other organs says nothing of lungs
    original = read_image(case.image)
    if original.ndim != 4 or len(labels) < 1:
        return None
    image = to_canonical(original)
    settings = settings or DRAMConfig()
    config = settings.with_overrides({"window": settings.window or guess_window(image)})
    facts = read_facts(case, image, original, config, labels)
    if facts.regions is None or facts.lesion is None:
        return None
    percent = measured_percent(facts.lesion.as_tensor()[0].numpy() > 0, facts.regions.as_tensor()[0].numpy())
    before = case.weak.model_dump() if case.weak else {}
    extent = {facts.names.get(index) or str(index): round(value, 3) for index, value in percent.items()}
    return WeakLabels.model_validate({**before, "extent": extent, "scores": {}, "source": "mask", "by": None})
