"""How well shapes teach a mask, judged on training images whose masks were hidden and gave no shape.

    python benchmarks/local_discrimination/tune_shapes.py --data DATA/fundus --seed 1 --out RUN \\
        --set iterations=1000

Shapes and pictures are those of `medseg bench local_discrimination --task unsupervised` with the same seed; every third
picture is judged. Settings are the preset's with shapes alone, as in the arms. No case that the benchmark reports takes
any part.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np

from medseg.benchmark.split import split_cases
from medseg.cases import load_cases
from medseg.inference.predictor import Predictor
from medseg.methods.local_discrimination.fields import body
from medseg.methods.local_discrimination.method import LocalDiscrimination
from medseg.methods.local_discrimination.unsupervised_arms import ANSWER, judge, other_images, write_shapes
from medseg.training.run import TrainingJob, train
from medseg.training.settings import parse_pairs
from medseg.transforms.io import read_image

EVERY = 3


def main() -> None:
    """Train on rendered shapes and print the Dice of every judged picture and their mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="run folder; shapes are written beside it")
    parser.add_argument("--seed", type=int, default=0, help="which images give the shapes")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="repeat")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    shapes = arguments.out.with_name(arguments.out.name + "_shapes")
    preset = LocalDiscrimination.presets["cpu"]
    alone = {"shape_share": 1.0, "iterations": preset.config["shape_iterations"], "seed": arguments.seed}
    settings = {**preset.config, **alone, **parse_pairs(arguments.set), "shapes": str(shapes)}
    config = LocalDiscrimination.config_class.from_dict(settings)
    assert isinstance(config, LocalDiscrimination.config_class)
    cases = load_cases(arguments.data, str(preset.config["patient_pattern"]))
    training = split_cases(cases, None, preset.held_out, 1, LocalDiscrimination)[0].training
    sources = other_images(training, arguments.seed)
    used = {case.patient for case in sources}
    pictures = tuple(case for case in training if case.patient not in used)
    write_shapes(shapes, sources, config.targets)
    hidden = tuple(LocalDiscrimination.hide_label(case) for case in pictures)
    train(TrainingJob("local_discrimination", config, {ANSWER: 1}, hidden, (), arguments.out, arguments.device))
    predictor, found = Predictor.from_folder(arguments.out, arguments.device), []
    for case in pictures[::EVERY]:
        mask = predictor.predict(LocalDiscrimination.hide_label(case)).mask
        assert mask is not None
        answer = (mask[0].numpy() > 0) & body(read_image(case.image)).numpy()
        found.append(judge(case, answer, config.targets)["dice"])
        print(f"{case.id} {found[-1]:.3f}")
    print(f"{' '.join(arguments.set)}: mean Dice {np.mean(found):.3f} of {len(found)} images, {len(sources)} shapes")


if __name__ == "__main__":
    main()
