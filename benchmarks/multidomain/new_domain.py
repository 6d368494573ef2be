"""Add a domain to a trained model, and look at what happens to the old ones.

python benchmarks/multidomain/new_domain.py DATA OUT --add vb3 [--labelled 2] [--iterations N] [--device cuda]

The model learns the other domains first. Then the new one comes with a few labels: its slot is copied from the nearest,
the filters are frozen for a while, then all domains are rehearsed. Held-out cases of all domains are measured twice.
The rule: no old domain loses more than a point of Dice.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from medseg.benchmark.split import split_cases
from medseg.cases import Case, load_cases
from medseg.errors import MedsegError
from medseg.files import write_json
from medseg.inference.evaluation import evaluate
from medseg.inference.predictor import Predictor
from medseg.methods.multidomain.method import MultiDomain
from medseg.training.labels import name_labels
from medseg.training.run import TrainingJob, train
from medseg.training.settings import build_config
from medseg.training.split import with_groups

POINT = 0.01
"""Dice that an old domain may lose."""


def main() -> None:
    """Train three times, write OUT/new_domain.json and print whether the rule holds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--add", required=True)
    parser.add_argument("--labelled", type=int, default=2)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    config = build_config("multidomain", asked.preset, typed={"iterations": asked.iterations})
    cases, labels = name_labels([asked.data], load_cases(asked.data, config.patient_pattern), MultiDomain)
    cases = with_groups(cases, MultiDomain, config)
    domain = {case.id: case.group for case in cases}
    [split] = split_cases(cases, 9, 9, 1, MultiDomain, domain)
    labelled = [case for case in split.training if case.label is not None]
    old = [case for case in labelled if domain[case.id] != asked.add]
    new = [case for case in labelled if domain[case.id] == asked.add]
    if asked.add not in domain.values() or not old:
        known = ", ".join(sorted(set(domain.values())))
        raise MedsegError(f"--add {asked.add} is no domain of the data beside another one; it has {known}")
    if not 1 <= asked.labelled <= len(new):
        raise MedsegError(f"--labelled {asked.labelled} is outside 1..{len(new)}, the labelled cases of {asked.add}")
    new = new[: asked.labelled]

    def run(name: str, chosen: list[Case], **settings: object) -> dict[str, float]:
        wanted = config.with_overrides(settings)
        train(TrainingJob("multidomain", wanted, labels, tuple(chosen), (), asked.out / name, asked.device))
        known = {domain[case.id] for case in chosen}
        held_out = [case for case in split.held_out if domain[case.id] in known]
        found = evaluate(Predictor.from_folder(asked.out / name, asked.device), held_out).cases
        values = {k: [found[case.id]["dice"] for case in held_out if domain[case.id] == k] for k in sorted(known)}
        return {k: round(sum(dice) / len(dice), 4) for k, dice in values.items() if dice}

    before = run("before", old)
    init = str(asked.out / "before" / "model.safetensors")
    after = run("after", [*old, *new], init=init)
    alone = run("alone", new)
    loss = {name: round(dice - after[name], 4) for name, dice in before.items()}
    passed = max(loss.values()) <= POINT
    write_json(asked.out / "new_domain.json", {
        "before": before, "after": after, "new_domain_alone": alone, "labels_of_the_new_domain": [c.id for c in new],
        "loss": loss, "allowed": POINT, "passed": passed,
    })  # fmt: skip
    verdict = "passed" if passed else "FAILED"
    print(f"{verdict}: old domains lose {loss}, allowed is {POINT}; {asked.add} has {after[asked.add]}")


if __name__ == "__main__":
    main()
