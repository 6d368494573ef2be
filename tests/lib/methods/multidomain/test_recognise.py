"""What is known of an image's domain, what its looks say, and when it counts as unknown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medseg.cases import Case
from medseg.errors import UnusableInputError
from medseg.inference.predictor import Predictor
from medseg.methods.base import TrainingSet
from medseg.methods.multidomain import conclude
from medseg.methods.multidomain.method import MultiDomain
from medseg.methods.multidomain.views import COUNT, SIDE, whole_views
from medseg.phantoms.joints import make_joint
from medseg.phantoms.organs import make_organ
from medseg.phantoms.spines import make_spine
from medseg.phantoms.study import write_grid
from medseg.transforms.io import read_image

SHAPE = (32, 32, 6)


def stranger(folder: Path, name: str, values: NDArray[Any]) -> Case:
    """An image of which nothing is known."""
    path = folder / name / "x.nii.gz"
    write_grid(path, values.astype(np.float32), np.eye(4))
    return Case("x", path)


def learn(method: MultiDomain, cases: Sequence[Case], iterations: int = 100) -> MultiDomain:
    """Train the classifier alone; it shares no weight with the rest."""
    loaded = {case.id: method.load(case) for case in cases}
    optimizer = torch.optim.AdamW(method.network.classifier.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(iterations):
        drawn = [method.sample(loaded[c.id], s.name, generator) for s in method.streams(cases) for c in s.cases]
        views, domains = (torch.stack([item[key] for item in drawn]) for key in ("view", "domain"))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(method.network.classifier(views), domains).backward()
        optimizer.step()
    method.network.eval()
    conclude.fit_classifier(method, TrainingSet(tuple(cases), lambda case: loaded[case.id]))
    return method


def test_trained_model_knows_new_joints_and_flags_what_is_none(make: Any, joints: list[Case], tmp_path: Path) -> None:
    method = learn(make(patch=(16, 16), width=2), joints)
    rng = np.random.default_rng(0)
    spine = np.stack([make_spine(1, (96, 192)).image] * 6, axis=-1)
    foreign = {"organ": make_organ(0, (32, 32, 16)).image, "spine": spine, "noise": rng.normal(size=SHAPE),
               "constant": np.ones(SHAPE)}  # fmt: skip

    guesses = {name: method.guess_domain(read_image(stranger(tmp_path, name, make_joint(name, 50, SHAPE)[0]).image))
               for name in method.registry.names}  # fmt: skip
    strange = {name: method.guess_domain(read_image(stranger(tmp_path, name, values).image))
               for name, values in foreign.items()}  # fmt: skip

    assert {name: guess.domain for name, guess in guesses.items()} == {name: name for name in guesses}
    assert max(guess.distance for guess in guesses.values()) < 1
    assert min(guess.distance for guess in strange.values()) > 1
    refusing = replace(method.config, unknown="refuse")
    method.config = refusing
    with pytest.raises(UnusableInputError, match=r"domain of x is unknown \(nearest: "):
        Predictor(method).predict(stranger(tmp_path, "refused", foreign["organ"]))


def test_only_domain_and_data_set_are_not_taken_at_their_word(make: Any, joints: list[Case], tmp_path: Path) -> None:
    method = learn(make(joints[:3], patch=(16, 16), width=2), joints[:3], 20)
    far = stranger(tmp_path, "far", 1000 * np.random.default_rng(0).normal(size=SHAPE))
    far = replace(far, image=far.image.rename(far.image.with_name("scan.nii.gz")))
    named = replace(far, dataset="ankle")

    for case, source in ((far, "only domain"), (named, "data set")):
        prediction = Predictor(method).predict(case)
        assert prediction.facts["domain_from"] == source
        assert "domain of this image is unknown; segmented as ankle" in prediction.warnings[0]
    stated = Predictor(method).predict(replace(far, domain="ankle"))
    own = Predictor(method).predict(joints[0].without_label())
    assert (stated.warnings, own.warnings) == ((), ())


def test_views_are_whole_slices_whatever_the_domain(tmp_path: Path) -> None:
    values = np.zeros((40, 30, 20), np.float32)
    values[:, :, 10:] = 1
    thick = tmp_path / "thick.nii.gz"
    write_grid(thick, np.moveaxis(values, 2, 0), np.diag([4.0, 1.0, 1.0, 1.0]))
    flat = tmp_path / "flat.nii.gz"
    write_grid(flat, values, np.eye(4))

    turned, plain = (whole_views(read_image(path)) for path in (thick, flat))

    assert turned.shape == plain.shape == (COUNT, 1, SIDE, SIDE)
    torch.testing.assert_close(turned, plain)  # slices run along the coarse axis
    assert float(plain[0].std()) == pytest.approx(0, abs=1e-6)  # nothing is padded
