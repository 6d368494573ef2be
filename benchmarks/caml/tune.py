"""One row of "What mattered" in benchmarks/caml/README.md: 4 labels, one seed, on cases that no benchmark reports.

    python benchmarks/caml/tune.py caml --data DIR --out OUT --set loss=dice_ce --set supervised_weight=1 \\
        --set lr_schedule=poly                                                                  "full", 1000 iterations
    python benchmarks/caml/tune.py supervised --data DIR --out OUT --set lr_schedule=poly
    python benchmarks/caml/tune.py caml ... --validate-above 0.86 --leave-out-below 0.2         the table's left half

The split of the list's cases: the first 4 are labelled; of those from the 17th on, patients whose hash is above one
bound validate, and patients below another, where benchmarks draw what they report on, take no part at all; everything
else is learnt from without its mask.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from medseg.cases import Case, load_cases
from medseg.methods import method_class
from medseg.training.labels import name_labels
from medseg.training.run import TrainingJob, train
from medseg.training.settings import parse_pairs
from medseg.training.split import stable_hash

BASE = {"iterations": 1000, "width": 8, "patch": (48, 48, 32), "scale": 0.5}
OF_METHOD = {"supervised": {"network": "vnet"}}  # CAML's branch V
LABELLED = 4
KEPT = 16  # first cases of the list, which never validate, so that other numbers of labels can be compared


def tuning_split(cases: Sequence[Case], above: float, below: float) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Training cases (the first are labelled) and validation cases."""
    validation = tuple(case for case in cases[KEPT:] if stable_hash(case.patient) > above)
    away = {case.id for case in cases[KEPT:] if stable_hash(case.patient) > above or stable_hash(case.patient) < below}
    training = [case if i < LABELLED else case.without_label() for i, case in enumerate(cases) if case.id not in away]
    return tuple(training), validation


def main() -> None:
    """Train once and print the Dice of every validation case and their mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=("caml", "supervised"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="repeat")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--validate-above", type=float, default=0.75, help="hash of the patient, in [0, 1)")
    parser.add_argument("--leave-out-below", type=float, default=0.066)
    arguments = parser.parse_args()
    kind = method_class(arguments.method)
    settings = {**BASE, **OF_METHOD.get(arguments.method, {}), **parse_pairs(arguments.set)}
    config = kind.config_class.from_dict(settings)
    cases, labels = name_labels([arguments.data], load_cases(arguments.data), kind)
    training, validation = tuning_split(cases, arguments.validate_above, arguments.leave_out_below)
    job = TrainingJob(arguments.method, config, labels, training, validation, arguments.out, arguments.device)
    result = train(job)["validation"]
    for name, metrics in result["cases"].items():
        print(f"{name} {metrics['dice']:.3f}")
    row = " ".join([arguments.method, *arguments.set])
    print(f"{row}: mean Dice {result['mean']['dice']:.3f} of {len(validation)} cases")


if __name__ == "__main__":
    main()
