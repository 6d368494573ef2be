from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation
from torch import nn

from medseg.cases import Case
from medseg.errors import MedsegError, UnusableInputError
from medseg.inference.evaluation import evaluate
from medseg.inference.predictor import Predictor
from medseg.methods.supervised.config import SupervisedConfig
from medseg.methods.supervised.method import Supervised
from medseg.transforms.io import write_volume

SHAPE = (48, 40, 30)
AXES = {
    "straight": np.eye(3),
    "flipped": np.diag([-1.0, 1.0, -1.0]),
    "permuted": np.array([[0.0, 0, 1], [-1, 0, 0], [0, 1, 0]]),
    "oblique": Rotation.from_rotvec([0.3, -0.2, 0.4]).as_matrix() @ np.diag([1.0, -1.0, 1.0]),
}


class Bright(nn.Module):
    """Foreground is what is brighter than the middle between the two intensities."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))
        self.inside = 0
        self.together = 0
        self.modes: list[bool] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.inside += 1
        self.together = max(self.together, self.inside)
        self.modes.append(self.training or torch.is_grad_enabled())
        time.sleep(0.001)
        self.inside -= 1
        return torch.cat([self.level - x, x - self.level], dim=1) * 4


def write_case(folder: Path, axes: str, shape: tuple[int, ...] = SHAPE, shift: float = 0.15) -> Case:
    rank = len(shape)
    affine = np.eye(rank + 1)
    affine[:rank, :rank] = AXES[axes][:rank, :rank] @ np.diag((0.8, 1.0, 2.0)[:rank])
    affine[:rank, -1] = (-30.0, 12.0, 55.5)[:rank]
    grid = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = sum(((a - shift) / 0.6) ** 2 for a in grid) < 1
    inside |= sum(((a - c) / 0.3) ** 2 for a, c in zip(grid, (-0.5, 0.4, 0.3), strict=False)) < 1
    paths = folder / f"{axes}.nii.gz", folder / f"{axes}_mask.nii.gz"
    for path, values in zip(paths, (inside[None] * 100.0, inside[None].to(torch.uint8)), strict=True):
        write_volume(path, MetaTensor(values, affine=torch.from_numpy(affine)))
    return Case(axes, *paths)


def predictor_for(case: Case, **settings: object) -> Predictor:
    given = {"width": 4, "patch": (32, 32, 16), "amp": "off", **settings}
    method = Supervised(Supervised.fit_config(SupervisedConfig.from_dict(given), [case]), {"a": 1})
    method.network = Bright()
    image = method.load(case)["image"]
    method.network.level.data.fill_(float(image.max() + image.min()) / 2)
    return Predictor(method)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize(("scale", "least"), [(1, 0.999), (0.5, 0.95)])
def test_mask_lies_on_the_images_own_grid(tmp_path: Path, axes: str, scale: float, least: float) -> None:
    case = write_case(tmp_path, axes)

    result = evaluate(predictor_for(case, scale=scale), [case])

    assert result.cases[axes]["dice"] > least
    assert result.quality == result.mean["dice"] == result.cases[axes]["dice"]


@pytest.mark.parametrize("axes", ["straight", "oblique"])
def test_everything_a_prediction_holds_has_the_images_grid(tmp_path: Path, axes: str) -> None:
    case = write_case(tmp_path, axes)

    prediction = predictor_for(case, spacing="1.5,1.5,1.5").predict(case)

    for tensor, channels in ((prediction.probabilities, 2), (prediction.uncertainty, 1), (prediction.mask, 1)):
        assert tensor is not None
        assert tensor.shape == (channels, *SHAPE)
        np.testing.assert_allclose(tensor.affine[:3, 3], (-30.0, 12.0, 55.5), atol=1e-4)
    torch.testing.assert_close(prediction.probabilities.as_tensor().sum(dim=0), torch.ones(SHAPE))
    assert 0 <= float(prediction.uncertainty.min()) <= float(prediction.uncertainty.max()) <= 1


def test_flat_images_come_back_from_half_scale(tmp_path: Path) -> None:
    case = write_case(tmp_path, "flipped", shape=(60, 44))

    result = evaluate(predictor_for(case, scale=0.5, patch="16,16"), [case])

    assert result.mean["dice"] > 0.96


def test_truth_on_another_grid_is_moved_before_it_is_compared(tmp_path: Path) -> None:
    case = write_case(tmp_path, "oblique")
    from medseg.transforms.grid import to_canonical
    from medseg.transforms.io import read_mask

    turned = write_volume(tmp_path / "turned.nii.gz", to_canonical(read_mask(case.label)))

    result = evaluate(predictor_for(case), [Case("oblique", case.image, turned)])

    assert result.mean["dice"] > 0.999


def test_prediction_does_not_look_at_the_mask(tmp_path: Path) -> None:
    case = write_case(tmp_path, "straight")
    broken = Case("straight", case.image, tmp_path / "nowhere.nii.gz")

    assert torch.equal(predictor_for(case).predict(broken).mask, predictor_for(case).predict(case).mask)


def test_threads_take_turns_and_get_what_one_thread_gets(tmp_path: Path) -> None:
    cases = [write_case(tmp_path, axes, shift=shift) for axes, shift in (("straight", 0.2), ("flipped", -0.1))]
    predictor = predictor_for(cases[0])
    expected = [predictor.predict(case).mask for case in cases]
    assert not torch.equal(expected[0], expected[1])
    got: dict[int, list[torch.Tensor]] = {0: [], 1: []}

    def work(index: int) -> None:
        for _ in range(2):
            got[index].append(predictor.predict(cases[index]).mask)

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert predictor.method.network.together == 1
    for index in (0, 1):
        assert [torch.equal(mask, expected[index]) for mask in got[index]] == [True, True]


@pytest.mark.parametrize("training", [True, False])
def test_network_predicts_in_eval_mode_and_keeps_its_own(tmp_path: Path, training: bool) -> None:
    case = write_case(tmp_path, "straight")
    predictor = predictor_for(case)
    network = predictor.method.network
    network.train(training)

    predictor.predict(case)
    predictor.score(case)

    assert network.training is training
    assert network.modes
    assert not any(network.modes)  # neither train mode nor gradients
    assert torch.is_grad_enabled()


def test_mode_is_restored_after_an_error(tmp_path: Path) -> None:
    case = write_case(tmp_path, "straight")
    predictor = predictor_for(case)
    predictor.method.network.train()

    def fail(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("boom")

    predictor.method.network.forward = fail
    with pytest.raises(RuntimeError, match="boom"):
        predictor.predict(case)

    assert predictor.method.network.training
    assert torch.is_grad_enabled()
    assert predictor._lock.acquire(blocking=False)


def test_evaluation_reports_each_case_and_counts_missed_structures(tmp_path: Path) -> None:
    good, other = write_case(tmp_path, "straight"), write_case(tmp_path, "flipped")
    predictor = predictor_for(good)
    seen: list[str] = []
    dark = write_volume(tmp_path / "dark.nii.gz", MetaTensor(torch.zeros(1, *SHAPE), affine=torch.eye(4)))
    truth = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    truth[0, 5:9, 5:9, 5:9] = 1
    mask = write_volume(tmp_path / "dark_mask.nii.gz", MetaTensor(truth, affine=torch.eye(4)))
    cases = [good, Case("none", other.image), Case("dark", dark, mask)]

    result = evaluate(predictor, cases, progress=lambda case, metrics: seen.append(f"{case.id} {metrics['missed']:g}"))

    assert seen == ["straight 0", "dark 1"]
    assert (result.cases["dark"]["dice"], result.missed) == (0.0, 1)
    assert result.mean["dice"] == pytest.approx(result.cases["straight"]["dice"] / 2)
    assert set(result.to_dict()) == {"cases", "mean", "quality", "missed", "skipped"}
    assert result.skipped == {}


def test_damaged_case_stops_an_evaluation_only_if_it_may(tmp_path: Path) -> None:
    good, bad = write_case(tmp_path, "straight"), write_case(tmp_path, "flipped")
    bad.image.write_bytes(b"nothing")
    predictor = predictor_for(good)

    result = evaluate(predictor, [bad, good], go_on=True)

    assert list(result.cases) == ["straight"]
    assert result.mean["dice"] == result.cases["straight"]["dice"]
    (skipped,) = result.to_dict()["skipped"]
    assert skipped["case"] == "flipped"
    assert "cannot be read" in skipped["reason"]
    for cases, go_on in (([bad, good], False), ([bad], True)):  # a table of nothing is no result
        with pytest.raises(UnusableInputError, match="cannot be read"):
            evaluate(predictor, cases, go_on=go_on)


def test_evaluation_says_what_it_cannot_compare(tmp_path: Path) -> None:
    case = write_case(tmp_path, "straight")
    flat = write_case(tmp_path, "flipped", shape=(20, 16))
    predictor = predictor_for(case)

    with pytest.raises(MedsegError, match="none of the 1 cases has a label"):
        evaluate(predictor, [case.without_label()])
    with pytest.raises(UnusableInputError, match="mask of x has 2 axes, its image 3"):
        evaluate(predictor, [Case("x", case.image, flat.label)])
