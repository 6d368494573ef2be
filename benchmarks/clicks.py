"""Dice after 0, 1, 3, 5 and 10 simulated clicks on top of a trained model.

    python benchmarks/clicks.py --model RUN --data DIR --cases la_020,la_021 --out clicks.json

Name cases that the model did not learn from with their masks. Clicks go into the middle of the largest error
(`medseg.inference.simulated_clicks`); the correction needs no training (`medseg.inference.clicks`).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from medseg.cases import load_cases
from medseg.files import write_json
from medseg.inference.predictor import Predictor
from medseg.inference.simulated_clicks import corrected_by_clicks
from medseg.metrics.table import segmentation_metrics
from medseg.transforms.grid import resize
from medseg.transforms.io import read_image, read_mask

SHOWN = (0, 1, 3, 5, 10)


def main() -> None:
    """Measure and print one line per case, and the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", required=True)
    parser.add_argument("--scale", type=float, default=1.0, help="resolution the clicks work at")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    predictor = Predictor.from_folder(arguments.model)
    cases = {case.id: case for case in load_cases(arguments.data)}
    table: dict[str, list[float]] = {}
    seconds: list[float] = []
    for name in arguments.cases.split(","):
        case = cases[name]
        probabilities, image = predictor.predict(case).probabilities, read_image(case.image)
        assert probabilities is not None
        assert case.label is not None
        size = [round(n * arguments.scale) for n in image.shape[1:]]
        probabilities, image = resize(probabilities, size), resize(image, size)
        truth = resize(read_mask(case.label), size, "label")[0].numpy()
        started = time.perf_counter()
        masks = list(corrected_by_clicks(probabilities, image, truth, max(SHOWN)))
        seconds.append((time.perf_counter() - started) / max(SHOWN))
        spacing = tuple(float(s) for s in image.pixdim)
        labels = predictor.method.labels
        table[name] = [segmentation_metrics(masks[n], truth, labels, spacing)["dice"] for n in SHOWN]
        sys.stdout.write(f"{name}  " + "  ".join(f"{value:.3f}" for value in table[name]) + "\n")
        sys.stdout.flush()
    means = [float(np.mean([row[n] for row in table.values()])) for n in range(len(SHOWN))]
    sys.stdout.write("mean    " + "  ".join(f"{value:.3f}" for value in means) + "\n")
    result = {"clicks": SHOWN, "mean": means, "cases": table, "seconds_per_click": float(np.mean(seconds))}
    write_json(arguments.out, result)


if __name__ == "__main__":
    main()
