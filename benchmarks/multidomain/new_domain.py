"""Add a domain to a trained model, and look at what happens to the old ones.

python benchmarks/multidomain/new_domain.py DATA OUT --add vb3 [--labelled 2] [--iterations N]

The model learns the other domains first. Then the new one comes with a few labels: its slot is copied from the nearest,
the filters are frozen for a while, then all domains are rehearsed. Held-out cases of all domains are measured twice.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from medseg.benchmark.split import split_cases
from medseg.cases import Case, load_cases
from medseg.domains import assign_domains
from medseg.files import write_json
from medseg.inference.evaluation import evaluate
from medseg.inference.predictor import Predictor
from medseg.methods.multidomain.method import MultiDomain
from medseg.training.labels import name_labels
from medseg.training.run import TrainingJob, train
from medseg.training.settings import build_config


def main() -> None:
    """Train twice and write OUT/new_domain.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--add", required=True)
    parser.add_argument("--labelled", type=int, default=2)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--iterations", type=int)
    asked = parser.parse_args()
    config = build_config("multidomain", asked.preset, typed={"iterations": asked.iterations})
    cases, labels = name_labels([asked.data], load_cases(asked.data, config.patient_pattern), MultiDomain)
    domain = assign_domains(cases, config.domain_pattern)
    [split] = split_cases(cases, 9, 9, 1, MultiDomain, domain)
    labelled = [case for case in split.training if case.label is not None]
    old = [case for case in labelled if domain[case.id] != asked.add]
    new = [case for case in labelled if domain[case.id] == asked.add][: asked.labelled]

    def run(name: str, chosen: list[Case], **settings: object) -> dict[str, float]:
        settings = {"iterations": config.iterations, **settings}
        job = TrainingJob(
            "multidomain", config.with_overrides(settings), labels, tuple(chosen), (), asked.out / name, "cpu"
        )
        train(job)
        known = {domain[case.id] for case in chosen}
        found = evaluate(
            Predictor.from_folder(asked.out / name), [replace(c) for c in split.held_out if domain[c.id] in known]
        ).cases
        return {k: round(sum(v) / len(v), 4) for k in sorted(known)
                if (v := [m["dice"] for i, m in found.items() if domain[i] == k])}  # fmt: skip

    before = run("before", old)
    init = str(asked.out / "before" / "model.safetensors")
    after = run("after", [*old, *new], init=init, learning_rate=config.learning_rate / 3)
    alone = run("alone", new)
    write_json(asked.out / "new_domain.json", {"before": before, "after": after, "new_domain_alone": alone,
                                               "labels_of_the_new_domain": [case.id for case in new]})  # fmt: skip


if __name__ == "__main__":
    main()
