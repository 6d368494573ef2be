"""What the cases of a domain tell of it: spacing, patch, slice axis."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor

from medseg.cases import Case
from medseg.methods.multidomain.config import MultiDomainConfig
from medseg.methods.multidomain.method import MultiDomain
from medseg.methods.multidomain.registry import slice_axis, working_spacing
from medseg.transforms.io import write_volume


def volume_case(folder: Path, name: str, shape: tuple[int, ...], spacing: tuple[float, ...]) -> Case:
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    mask = torch.zeros(1, *shape, dtype=torch.uint8)
    mask[(0, *(slice(n // 4, n // 2) for n in shape))] = 1
    image = torch.randn(1, *shape) + 3 * mask
    paths = [folder / kind / f"{name}.nii.gz" for kind in ("images", "labels")]
    for path, values in zip(paths, (image, mask), strict=True):
        write_volume(path, MetaTensor(values, affine=affine))
    return Case(name, *paths, dataset="set")


def fit(cases: list[Case], **settings: object) -> MultiDomain:
    config = MultiDomainConfig.from_dict({"patch": (64, 48), "width": 2, "amp": "off", **settings})
    return MultiDomain(MultiDomain.fit_config(config, cases), {"label_1": 1})


def test_each_domain_has_its_own_spacing_and_patch(tmp_path: Path) -> None:
    cases = [volume_case(tmp_path, f"a_{i}", (30, 40, 5), (1, 1, 4)) for i in range(2)]
    cases += [volume_case(tmp_path, f"b_{i}", (80, 70, 6), (0.5, 0.5, 0.5)) for i in range(2)]
    method = fit(cases)

    assert method.registry["a"].spacing == (1, 1, 4)
    assert method.patch_of("a") == (32, 48)
    assert method.patch_of("b") == (64, 48)
    assert method.patch_of(None) == (64, 48)
    assert method.load(cases[2])["image"].shape == (1, 80, 70, 6)


def test_scale_belongs_to_the_domain(tmp_path: Path) -> None:
    cases = [volume_case(tmp_path, f"a_{i}", (32, 40, 6), (1, 1, 2)) for i in range(2)]

    assert fit(cases, scale=0.5).registry["a"].spacing == (2, 2, 4)
    assert fit(cases, scale=0).registry["a"].spacing == (1, 1, 2)
    assert fit(cases, scale=0.5).load(cases[0])["image"].shape == (1, 16, 20, 3)
    large = MetaTensor(torch.zeros(1, 200, 100, 60), affine=torch.eye(4))
    assert working_spacing(large, (1, 1, 1), 0) == (2, 2, 2)


@pytest.mark.parametrize(("spacing", "axis"), [((1, 1, 1), 2), ((4, 1, 1), 0), ((1, 4, 1), 1), ((1, 1.2, 1), 2)])
def test_slices_run_along_the_coarsest_axis(spacing: tuple[float, ...], axis: int) -> None:
    assert slice_axis(spacing) == axis


def test_sagittal_volume_is_cut_along_its_own_axis_and_comes_back_on_its_grid(tmp_path: Path) -> None:
    cases = [volume_case(tmp_path, f"s_{i}", (5, 30, 40), (4, 1, 1)) for i in range(2)]
    method = fit(cases)
    loaded = method.load(cases[0])

    assert loaded["image"].shape == (1, 30, 40, 5)
    assert int(loaded["label"].sum()) == int(method.read_truth(cases[0], loaded["image"]).sum())
    method.network.eval()
    with torch.no_grad():
        prediction = method.predict(loaded)
    from medseg.inference.predictor import restore
    from medseg.transforms.io import read_image

    original = read_image(cases[0].image)
    back = restore(prediction, original).probabilities
    assert back.shape[1:] == original.shape[1:]
    torch.testing.assert_close(
        back.as_tensor(), prediction.probabilities.as_tensor().permute(0, 3, 1, 2), atol=1e-3, rtol=0
    )
