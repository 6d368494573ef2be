"""What heat maps are worth, on training images that no benchmark reports and that the heat maps were not trained on.

    python benchmarks/local_discrimination/tune_landmarks.py --data DATA/cephalometric \\
        --model OUT/landmarks/shared/landmarks_seed0_*

OUT is what `medseg bench local_discrimination --task landmarks` wrote: its pretraining saw the training images, these
among them, without a mark. Every fourth of them is left out of what comes after: consensus and heat maps.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from medseg.benchmark.split import split_cases
from medseg.cases import Case, load_cases
from medseg.inference.model_folder import load_model
from medseg.methods.base import TrainingSet
from medseg.methods.local_discrimination import heatmaps, landmarks
from medseg.methods.local_discrimination.landmark_arms import template_of
from medseg.methods.local_discrimination.landmarks import radial_errors
from medseg.methods.local_discrimination.method import LocalDiscrimination
from medseg.metrics.table import mean_table
from medseg.training.initial import load_initial

EVERY = 4
HELD_OUT = 0.25  # as the benchmark


def build(model: Path, template: Case, device: str) -> LocalDiscrimination:
    """The pretrained network with room for one template."""
    pretrained = load_model(model, device)
    assert isinstance(pretrained, LocalDiscrimination)
    assert template.weak is not None
    settings = {"landmarks": tuple(template.weak.landmarks), "templates": 1}
    method = LocalDiscrimination(pretrained.config.with_overrides(settings), {})
    load_initial(method.network, model)
    method.network.to(device).eval()
    return method


def report(name: str, method: LocalDiscrimination, cases: Sequence[Case]) -> None:
    """Print the mean over cases of errors in mm and shares within 2, 2.5, 3 and 4 mm."""
    found = {case.id: landmarks.predict(method, method.load(case)["image"])[0] for case in cases}
    table = mean_table({case.id: radial_errors(found[case.id], case, method.config.pixel_mm) for case in cases})
    print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in table.items()))


def main() -> None:
    """Print mean error and shares within 2, 2.5, 3 and 4 mm of the templates alone and with heat maps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="which template")
    parser.add_argument("--tail", type=float, default=heatmaps.TAIL, help="see heatmaps.TAIL")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    heatmaps.TAIL = arguments.tail
    training = split_cases(load_cases(arguments.data), None, HELD_OUT, 1, LocalDiscrimination)[0].training
    config = LocalDiscrimination.config_class.from_dict({"dimension": 2})
    template = template_of(SimpleNamespace(training_cases=training, config=config, seed=arguments.seed))
    others = [case for case in training if case.id != template.id]
    left_out, kept = others[EVERY - 1 :: EVERY], [case for i, case in enumerate(others) if i % EVERY != EVERY - 1]
    method = build(arguments.model, template, arguments.device)
    method.conclude(TrainingSet((template, *map(LocalDiscrimination.hide_label, kept)), method.load))
    report("with heat maps", method, left_out)
    del method.network._heat
    report("templates alone", method, left_out)


if __name__ == "__main__":
    main()
