"""How exact is geometry where the mask is? Angles of masks drawn from the challenge's corners against stored angles.

python benchmarks/seg4reg/clean_masks.py --data DIR
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from PIL import Image

from medseg.cases import load_cases
from medseg.methods.seg4reg.geometry import measure_mask
from medseg.methods.seg4reg.targets import VERTEBRA, draw_spine, read_truth
from medseg.metrics.smape import smape

SIDES = {"extreme pixels": False, "fitted sides (refine_quads)": True}


def main() -> None:
    """Print mean absolute error and SMAPE of both ways to find corners, over the masks with 16 to 18 components."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
    drawn = 0
    for case in load_cases(parser.parse_args().data):
        with Image.open(case.image) as file:
            size = file.size
        truth = read_truth(case, MetaTensor(torch.zeros(1, *size), affine=torch.eye(3)))
        if truth.corners is None:
            continue
        drawn += 1
        mask = draw_spine(truth.corners, size) == VERTEBRA
        for name, refine in SIDES.items():
            geometry = measure_mask(mask, (1.0, 1.0), refine=refine)
            if geometry.trusted and geometry.cobb is not None:
                angles = np.array(geometry.cobb.angles)
                found[name].append((float(np.abs(angles - truth.angles).mean()), smape(angles, truth.angles)))
    for name, pairs in found.items():
        mae, per_cent = np.mean(pairs, axis=0)
        values = {"masks": drawn, "measured": len(pairs), "mae_deg": round(mae, 2), "smape": round(per_cent, 2)}
        print(json.dumps({"corners": name, **values, "median_smape": round(float(np.median(pairs, axis=0)[1]), 2)}))


if __name__ == "__main__":
    main()
