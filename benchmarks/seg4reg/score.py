"""Does the acquisition score point at the radiographs the model gets wrong? Spearman of the score with SMAPE.

    python benchmarks/seg4reg/score.py --bench BENCH --arm full --data DIR

The cases are those that the benchmark held out: the model never saw them, and scores them without their labels. With
several seeds each has a correlation of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg.cases import Case, load_cases
from medseg.files import read_json, write_json
from medseg.inference.predictor import Predictor
from medseg.metrics.statistics import spearman


def main() -> None:
    """Print the correlations of every seed of an arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=Path, required=True)
    parser.add_argument("--arm", default="full")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    runs = sorted(
        (run for run in (arguments.bench / "runs").glob(f"{arguments.arm}_seed*") if (run / "result.json").exists()),
        key=lambda run: run.name,
    )
    if not runs:
        parser.error(f"{arguments.bench / 'runs'} holds no finished run of arm {arguments.arm}")
    cases = load_cases(arguments.data)
    found = {run.name: score_run(run, cases, arguments.device) for run in runs}
    for name, result in found.items():
        print(json.dumps({"run": name, "cases": len(result["cases"]), "spearman": result["spearman"]}))
    if arguments.json:
        write_json(arguments.json, found)


def score_run(run: Path, cases: Sequence[Case], device: str) -> dict[str, Any]:
    """Score the held-out cases of one run; their errors are in its result."""
    known = read_json(run / "result.json")["cases"]
    predictor = Predictor.from_folder(run, device)
    rows = {}
    for case in cases:
        if "smape" in known.get(case.id, {}):
            score = predictor.score(predictor.method.hide_label(case))  # a known angle would halve it
            rows[case.id] = {"error": known[case.id]["smape"], "score": score.value, **score.parts}
    errors = [row["error"] for row in rows.values()]
    names = dict.fromkeys(key for row in rows.values() for key in ("score", *row) if key != "error")
    spearmans = {name: round(spearman([row.get(name, 0.0) for row in rows.values()], errors), 3) for name in names}
    return {"spearman": spearmans, "cases": rows}


if __name__ == "__main__":
    main()
