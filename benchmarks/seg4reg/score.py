"""Does the acquisition score point at the radiographs the model gets wrong? Spearman of the score with SMAPE.

    python benchmarks/seg4reg/score.py --bench BENCH --arm full --data DIR

The cases are those that the benchmark held out: the model never saw them, with or without their labels.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medseg.cases import load_cases
from medseg.files import read_json, write_json
from medseg.inference.predictor import Predictor
from medseg.metrics.statistics import spearman


def main() -> None:
    """Score the held-out cases; their errors are in the benchmark's results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=Path, required=True)
    parser.add_argument("--arm", default="full")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    run = next(iter(sorted((arguments.bench / "runs").glob(f"{arguments.arm}_seed*"))))
    known = read_json(run / "result.json")["cases"]
    predictor = Predictor.from_folder(run, arguments.device)
    rows = {}
    for case in load_cases(arguments.data):
        if case.id in known and "smape" in known[case.id]:
            score = predictor.score(case)
            rows[case.id] = {"error": known[case.id]["smape"], "score": score.value, **score.parts}
    errors = [row["error"] for row in rows.values()]
    names = ["score", *dict.fromkeys(key for row in rows.values() for key in row if key not in ("error", "score"))]
    found = {name: round(spearman([row.get(name, 0.0) for row in rows.values()], errors), 3) for name in names}
    print(json.dumps({"cases": len(rows), "spearman": found}))
    if arguments.json:
        write_json(arguments.json, {"spearman": found, "cases": rows})


if __name__ == "__main__":
    main()
