"""Does the acquisition score point at the images the model gets wrong? Spearman of the score with 1 - Dice.

    python benchmarks/score.py --model BENCH/runs/full_seed0 --data DIR --exclude-first 4 --cases 30

Cases are the unlabelled pool as the strategies see it: the model learnt from most of these images, from none of their
masks. Taken in the order of a hash of their id, so the same command takes the same cases.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medseg.cases import load_cases
from medseg.files import write_json
from medseg.inference.evaluation import evaluate_case
from medseg.inference.predictor import Predictor
from medseg.metrics.statistics import spearman
from medseg.training.split import stable_hash


def main() -> None:
    """Score and evaluate the cases one by one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--exclude-first", type=int, default=4, help="the labelled cases, first in list order")
    parser.add_argument("--cases", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    predictor = Predictor.from_folder(arguments.model, arguments.device)
    pool = sorted(
        load_cases(arguments.data)[arguments.exclude_first :], key=lambda case: stable_hash("score" + case.id)
    )
    rows = {}
    for case in pool[: arguments.cases]:
        score, metrics = predictor.score(case), evaluate_case(predictor, case)
        rows[case.id] = {"error": 1 - metrics["dice"], "score": score.value, **score.parts}
        print(case.id, json.dumps({key: round(value, 4) for key, value in rows[case.id].items()}), flush=True)
    names = [name for name in next(iter(rows.values())) if name != "error"]
    errors = [row["error"] for row in rows.values()]
    found = {name: round(spearman([row[name] for row in rows.values()], errors), 3) for name in names}
    print(json.dumps({"cases": len(rows), "spearman": found}))
    if arguments.json:
        write_json(arguments.json, {"spearman": found, "cases": rows})


if __name__ == "__main__":
    main()
