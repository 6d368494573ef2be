"""What the branches of trained models say of the unlabelled pool: V, A, their mean, each with its largest component.

    python benchmarks/caml/branches.py --data DATA OUT/bench/runs/*_seed*

The 14 cases are drawn by a hash from those that a benchmark run neither knew the masks of nor reports on; so what is
chosen by them is not chosen on reported cases. Dice is that on the network's grid.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.transforms import KeepLargestConnectedComponent

from medseg.cases import Case, load_cases
from medseg.inference.predictor import Predictor
from medseg.training.split import stable_hash
from medseg.transforms.grid import resize, to_canonical
from medseg.transforms.io import read_mask

LABELLED, CASES = 4, 14


def dice(mask: torch.Tensor, truth: torch.Tensor) -> float:
    """Dice of two boolean volumes; 1 where both are empty."""
    return float(2 * (mask & truth).sum() / (mask.sum() + truth.sum()).clamp_min(1))


@torch.no_grad()
def opinions(method: Any, image: Any) -> dict[str, torch.Tensor]:
    """Foreground probability of V, of A and of their mean, (*grid)."""

    def both(windows: torch.Tensor) -> torch.Tensor:
        network = method.network
        v, a = network.both(windows)[:2] if hasattr(network, "both") else (network(windows),) * 2
        return torch.cat([torch.softmax(logits.float(), dim=1)[:, 1:] for logits in (v, a)], dim=1)

    v, a = method.slide(image, both)
    return {"V": v, "A": a, "mean": (v + a) / 2}


def judge(run: Path, pool: Sequence[Case]) -> dict[str, float]:
    """Mean Dice of every opinion, plain and of its largest component."""
    method = Predictor.from_folder(run, "cpu").method
    method.network.eval()
    keep, sums = KeepLargestConnectedComponent(), {}
    for case in pool:
        image = method.load(case)["image"]
        assert case.label is not None
        truth = resize(to_canonical(read_mask(case.label)), image.shape[1:], mode="label").as_tensor()[0] > 0
        for name, probability in opinions(method, image).items():
            mask = (probability > 0.5)[None]
            for title, answer in ((name, mask), (f"{name}, largest", torch.as_tensor(keep(mask.to(torch.uint8))) > 0)):
                sums[title] = sums.get(title, 0.0) + dice(answer[0], truth) / len(pool)
    return sums


def main() -> None:
    """Print one line for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of `medseg bench caml`")
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    reported = {name for run in arguments.runs for name in json.loads((run / "result.json").read_text())["cases"]}
    cases = [case for case in load_cases(arguments.data)[LABELLED:] if case.id not in reported]
    pool = sorted(cases, key=lambda case: stable_hash("b" + case.id))[:CASES]
    for run in arguments.runs:
        print(run.name, json.dumps({name: round(value, 3) for name, value in judge(run, pool).items()}), flush=True)


if __name__ == "__main__":
    main()
