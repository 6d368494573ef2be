from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from medseg.cases import Case
from medseg.errors import MedsegError, UnusableInputError
from medseg.methods.base import Prediction
from medseg.methods.patches import augment, normalise, normalised_entropy, random_crop
from medseg.methods.supervised.config import SupervisedConfig
from medseg.methods.supervised.method import Supervised
from medseg.transforms.io import write_volume


def write_case(folder: Path, shape: tuple[int, ...], spacing: tuple[float, ...] = (), value: int = 1) -> Case:
    """A ramp image and a mask of a box."""
    rank = len(shape)
    affine = torch.diag(torch.tensor([*(spacing or (1.0,) * rank), 1.0], dtype=torch.float64))
    image = torch.arange(float(np.prod(shape))).reshape(1, *shape) % 251
    mask = torch.zeros(1, *shape, dtype=torch.uint8)
    mask[(0, *(slice(n // 4, n // 2) for n in shape))] = value
    suffix = ".png" if rank == 2 else ".nii.gz"
    paths = folder / f"image{suffix}", folder / f"mask{suffix}"
    for path, values in zip(paths, (image, mask), strict=True):
        write_volume(path, MetaTensor(values, affine=affine))
    return Case("a", paths[0], paths[1])


def fit(case: Case, **settings: object) -> SupervisedConfig:
    config = Supervised.fit_config(SupervisedConfig.from_dict({"width": 4, "network": "vnet", **settings}), [case])
    assert isinstance(config, SupervisedConfig)
    return config


def method_for(case: Case, **settings: object) -> Supervised:
    return Supervised(fit(case, amp="off", **settings), {"a": 1})


def test_fit_takes_axes_channels_and_cuts_the_patch_to_the_image(tmp_path: Path) -> None:
    config = fit(write_case(tmp_path, (50, 20, 9)))

    assert (config.dimension, config.channels, config.scale) == (3, 1, 1.0)
    assert config.patch == (56, 24, 16)  # 112 x 112 x 80 cut to the next multiple of 8


def test_fit_makes_a_square_of_a_patch_for_volumes(tmp_path: Path) -> None:
    config = fit(write_case(tmp_path, (2000, 1200)), patch=(16, 16, 16), scale=1)

    assert (config.dimension, config.patch) == (2, (64, 64))


def test_automatic_scale_halves_until_a_million_voxels(tmp_path: Path) -> None:
    case = write_case(tmp_path, (2000, 1200))  # 2.4 million; a quarter of it at half scale

    assert fit(case, scale=0, patch="64,64").scale == 0.5
    assert fit(case, scale=0, patch="64,64", spacing="2,2").scale == 1.0


def test_stride_of_the_paper_is_the_stride_of_the_windows(tmp_path: Path) -> None:
    """CAML card sec. 5: steps 18, 18, 4 of patch 112 x 112 x 80. A voxel holds its index: windows tell their place."""
    shape = (148, 130, 88)
    config = SupervisedConfig.from_dict(
        {"dimension": 3, "channels": 1, "patch": "112,112,80", "stride": "18,18,4", "width": 4, "network": "vnet"}
    )
    method = Supervised(config, {"a": 1})
    index = torch.arange(float(np.prod(shape))).reshape(1, *shape)
    seen: list[tuple[int, ...]] = []

    def look(windows: torch.Tensor) -> torch.Tensor:
        seen.extend(tuple(int(i) for i in np.unravel_index(int(w[0, 0, 0, 0]), shape)) for w in windows)
        return windows

    method.slide(MetaTensor(index, affine=torch.eye(4)), look)

    assert [sorted({place[axis] for place in seen}) for axis in range(3)] == [[0, 18, 36], [0, 18], [0, 4, 8]]
    assert len(seen) == 18
    assert SupervisedConfig().window_overlap() == 0.5


def test_stride_needs_a_step_per_axis(tmp_path: Path) -> None:
    case = write_case(tmp_path, (50, 20, 9))

    assert fit(case, stride="60,8,4").window_overlap() == (0.0, 1 - 8.5 / 24, 1 - 4.5 / 16)  # patch is 56 x 24 x 16
    with pytest.raises(MedsegError, match=r"stride \(8, 8\) has 2 steps but the images have 3 axes"):
        fit(case, stride="8,8")
    with pytest.raises(MedsegError, match=r"stride = \(8, 0, 8\) must be at least 1"):
        fit(case, stride="8,0,8")


def test_fit_skips_a_damaged_first_image(tmp_path: Path) -> None:
    case = write_case(tmp_path, (20, 16))
    damaged = Case("b", tmp_path / "b.png")
    damaged.image.write_bytes(b"x")

    assert Supervised.fit_config(SupervisedConfig(), [damaged, case]).to_dict()["dimension"] == 2
    with pytest.raises(UnusableInputError, match=r"b\.png"):
        Supervised.fit_config(SupervisedConfig(), [damaged])
    with pytest.raises(MedsegError, match="no image to learn from"):
        Supervised.fit_config(SupervisedConfig(), [])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dimension": 2}, "dimension = 2, but the images have 3 axes"),
        ({"patch": "32,32"}, r"patch \(32, 32\) has 2 lengths but the images have 3 axes"),
        ({"spacing": "1,1"}, r"spacing \(1.0, 1.0\) has 2 values but the images have 3 axes"),
        ({"spacing": "1,0,1"}, r"spacing = \(1.0, 0.0, 1.0\) must be positive"),
        ({"patch": ()}, "patch is empty"),
        ({"patch": "32,0,32"}, r"patch = \(32, 0, 32\) must be at least 1"),
        ({"dimension": 4}, "dimension = 4 is unknown; choose one of 0, 2, 3"),
        ({"labelled_batch": 0}, "labelled_batch = 0"),
        ({"overlap": 1}, r"overlap = 1.0 is outside \[0, 1\)"),
        ({"scale": 5}, r"scale = 5.0 is outside \[0, 4\]"),
        ({"augmentation": "all"}, "augmentation = 'all' is unknown"),
        ({"lr_schedule": "step"}, "lr_schedule = 'step' is unknown"),
        ({"foreground_crops": 2}, "foreground_crops = 2.0 is outside"),
        ({"norm": "layer"}, "norm = 'layer' is unknown; choose one of batch"),
        ({"network": "resnet"}, "network = 'resnet' is unknown"),
        ({"loss": "focal"}, "loss = 'focal' is unknown"),
        ({"width": 0}, "width = 0"),
    ],
)
def test_wrong_settings_are_one_sentence(tmp_path: Path, settings: dict[str, object], words: str) -> None:
    case = write_case(tmp_path, (20, 16, 12))

    with pytest.raises(MedsegError, match=words):
        fit(case, **settings)


def test_load_resamples_image_and_label_onto_one_grid(tmp_path: Path) -> None:
    case = write_case(tmp_path, (20, 16, 12), spacing=(1.0, 1.0, 2.0))

    loaded = method_for(case, spacing="2,2,2").load(case)

    assert loaded["image"].shape == loaded["label"].shape == (1, 10, 8, 12)
    assert loaded["label"].dtype == torch.uint8
    assert (
        int(loaded["label"].sum()) == 2 * 2 * 3
    )  # voxels 5..9 x 4..7 x 3..5: voxel 5 is half of one, and a tie is background
    assert float(loaded["image"].mean()) == pytest.approx(0, abs=1e-4)
    assert float(loaded["image"].std(unbiased=False)) == pytest.approx(1, abs=1e-4)
    assert "label" not in method_for(case).load(case.without_label())


def test_image_of_another_kind_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    volume, flat = write_case(tmp_path, (20, 16, 12)), write_case(tmp_path / "flat", (20, 16))
    method = method_for(volume)

    with pytest.raises(UnusableInputError, match="image a has 2 axes, but this model was made for 3D images"):
        method.load(flat)
    with pytest.raises(UnusableInputError, match="image a has 1 channels, but this model was made for 3"):
        method_for(volume, channels=3).load(volume)
    with pytest.raises(UnusableInputError, match="mask of a has 2 axes, its image 3"):
        method.load(Case("a", volume.image, flat.label))


def test_mask_with_an_unknown_value_is_one_sentence(tmp_path: Path) -> None:
    case = write_case(tmp_path, (20, 16, 12), value=4)

    with pytest.raises(UnusableInputError, match=r"mask of a holds label 4, but the labels are \{'a': 1\}"):
        method_for(case).load(case)


def test_mask_on_another_grid_is_moved_to_the_images(tmp_path: Path) -> None:
    case = write_case(tmp_path, (20, 16, 12))
    expected = method_for(case).load(case)["label"].as_tensor()
    flipped = MetaTensor(expected.flip(1), affine=torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64)))
    flipped.affine[0, 3] = 19.0
    write_volume(tmp_path / "flipped.nii.gz", flipped)

    got = method_for(case).load(Case("a", case.image, tmp_path / "flipped.nii.gz"))["label"]

    assert torch.equal(got.as_tensor(), expected)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_foreground_crops_hold_foreground_and_image_and_label_stay_together() -> None:
    label = torch.zeros(1, 40, 40, 40, dtype=torch.uint8)
    label[0, 30, 2, 38] = 1
    tensors = {"image": torch.arange(64000.0).reshape(1, 40, 40, 40), "label": label}

    for seed in range(20):
        crop = random_crop(tensors, (16, 16, 8), 1.0, generator(seed))
        assert crop["image"].shape == crop["label"].shape == (1, 16, 16, 8)
        assert int(crop["label"].sum()) == 1
        assert float(crop["image"][crop["label"] == 1]) == 30 * 1600 + 2 * 40 + 38
    plain = [int(random_crop(tensors, (16, 16, 8), 0.0, generator(s))["label"].sum()) for s in range(20)]
    assert sum(plain) < 10


def test_small_images_are_padded_alike_at_both_ends() -> None:
    tensors = {"image": torch.ones(2, 4, 6), "label": torch.ones(1, 4, 6, dtype=torch.uint8)}

    crop = random_crop(tensors, (8, 6), 0.5, generator(0))

    assert crop["image"][0, :, 0].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert crop["label"][0, :, 3].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("kind", ["none", "flips", "contrast", "strong"])
@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 8), (16, 12, 8)])
def test_augmentation_follows_its_seed_alone_and_keeps_shape_and_type(kind: str, shape: tuple[int, ...]) -> None:
    tensors = {"image": torch.rand(1, *shape), "label": (torch.rand(1, *shape) > 0.5).to(torch.uint8)}
    before = {key: value.clone() for key, value in tensors.items()}

    once = augment(tensors, kind, len(shape), 7)
    augment(tensors, kind, len(shape), 8)
    np.random.seed(3)
    again = augment(tensors, kind, len(shape), 7)

    for key, value in once.items():
        assert torch.equal(value, again[key])
        assert (value.shape, value.dtype) == (tensors[key].shape, tensors[key].dtype)
        assert torch.equal(tensors[key], before[key])
    assert not isinstance(once["image"], MetaTensor)


def test_flips_move_image_and_label_alike() -> None:
    values = torch.arange(16 * 16 * 4.0).reshape(1, 16, 16, 4)
    results = [augment({"image": values, "label": values.clone()}, "flips", 3, seed) for seed in range(12)]

    assert all(torch.equal(r["image"], r["label"]) for r in results)
    assert all(torch.equal(r["image"].flatten().sort()[0], values.flatten()) for r in results)
    assert len({tuple(r["image"].flatten().tolist()) for r in results}) >= 4  # of the eight poses in the plane


def test_contrast_augmentation_changes_intensities_and_nothing_else() -> None:
    """Places are those of the flips; contrast is weaker in most crops and never much stronger."""
    image = torch.randn(1, 16, 16, 8, generator=generator(0))
    tensors = {"image": image, "label": (image > 0).to(torch.uint8)}
    spreads = []
    for seed in range(20):
        flipped, changed = (augment(tensors, kind, 3, seed) for kind in ("flips", "contrast"))
        assert torch.equal(changed["label"], flipped["label"])
        both = torch.stack([changed["image"].flatten(), flipped["image"].flatten()])
        assert float(torch.corrcoef(both)[0, 1]) > 0.6
        spreads.append(float(changed["image"].std() / flipped["image"].std()))
    assert min(spreads) < 0.6
    assert max(spreads) < 1.5
    assert len(set(spreads)) == 20


def test_strong_augmentation_turns_image_and_label_alike() -> None:
    """The label is the image's bright box; after turning, the two still cover each other."""
    box = torch.zeros(1, 32, 32)
    box[0, 8:20, 10:26] = 1
    for seed in range(12):
        result = augment({"image": box * 4, "label": box.to(torch.uint8)}, "strong", 2, seed)
        bright, label = result["image"] > 2, result["label"] > 0
        assert float(2 * (bright & label).sum() / (bright.sum() + label.sum())) > 0.9


def test_sample_is_a_function_of_its_generator(tmp_path: Path) -> None:
    case = write_case(tmp_path, (40, 36, 20))
    method = method_for(case, patch="16,16,8")
    loaded = method.load(case)

    one, same, other = (method.sample(loaded, "labelled", generator(seed)) for seed in (1, 1, 2))

    assert one["image"].shape == (1, 16, 16, 8)
    assert torch.equal(one["image"], same["image"])
    assert torch.equal(one["label"], same["label"])
    assert not torch.equal(one["image"], other["image"])


@pytest.mark.parametrize("grid", [(33, 20, 17), (16, 16, 16), (7, 40, 9)])
def test_sliding_window_covers_every_voxel_once_normalised(tmp_path: Path, grid: tuple[int, ...]) -> None:
    case = write_case(tmp_path, (40, 36, 20))
    method = method_for(case, patch="16,16,16")
    image = MetaTensor(torch.rand(1, *grid) + 1, affine=torch.eye(4))
    sizes = []

    def double(windows: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(windows.shape[2:]))
        return torch.cat([windows * 2, windows + 1], dim=1)

    got = method.slide(image, double)

    assert set(sizes) == {(16, 16, 16)}
    torch.testing.assert_close(got, torch.cat([image.as_tensor() * 2, image.as_tensor() + 1]), atol=1e-4, rtol=0)


def test_probabilities_are_averaged_and_the_uncertainty_is_their_entropy(tmp_path: Path) -> None:
    case = write_case(tmp_path, (40, 36, 20))
    method = method_for(case, patch="16,16,8")
    method.network = Constant([0.0, np.log(3.0)])

    prediction = method.predict(method.load(case))

    assert prediction.probabilities is not None
    assert prediction.uncertainty is not None
    torch.testing.assert_close(prediction.probabilities.as_tensor()[1], torch.full((40, 36, 20), 0.75))
    entropy = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    torch.testing.assert_close(prediction.uncertainty.as_tensor()[0], torch.full((40, 36, 20), float(entropy)))


class Constant(nn.Module):
    """The same logits everywhere."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (x.shape[0], len(self.logits), *x.shape[2:])
        return self.logits.reshape(1, -1, *[1] * (x.ndim - 2)).expand(shape)


def test_largest_component_is_kept_per_label(tmp_path: Path) -> None:
    case = write_case(tmp_path, (20, 16))
    config = fit(case, largest_component=True)
    method = Supervised(config, {"a": 1, "b": 2})
    mask = torch.tensor([[[1, 1, 0, 1], [0, 0, 0, 0], [2, 0, 2, 2]]], dtype=torch.uint8)

    kept = method.finish(Prediction(None, mask=MetaTensor(mask, affine=torch.eye(3))), case)

    assert kept.mask is not None
    assert kept.mask[0].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 2, 2]]


@pytest.mark.parametrize(("pieces", "expected"), [([(2, 12)], True), ([(2, 9), (12, 14)], False)])
def test_labels_in_one_piece_keep_their_largest_component(
    pieces: list[tuple[int, int]], expected: bool, tmp_path: Path
) -> None:
    cases = [write_case(tmp_path / str(number), (20, 16)) for number in range(4)]
    mask = torch.zeros(1, 20, 16, dtype=torch.uint8)
    for first, last in pieces:
        mask[:, first:last, 2:10] = 1
    for case in cases:
        assert case.label is not None
        write_volume(case.label, MetaTensor(mask, affine=torch.eye(3)))

    def fitted(cases: list[Case], **settings: object) -> bool:
        config = Supervised.fit_config(SupervisedConfig.from_dict({"patch": (16, 16), **settings}), cases)
        assert isinstance(config, SupervisedConfig)
        return config.largest_component

    assert fitted(cases, one_piece=True) is expected
    assert fitted(cases) is False
    assert fitted(cases[:3], one_piece=True) is False, "three masks are too few to tell"
    assert fitted([case.without_label() for case in cases], one_piece=True) is False


@pytest.mark.parametrize(
    ("rule", "expected"), [("constant", [1, 1, 1]), ("poly", [1, 0.5**0.9, 0]), ("cosine", [1, 0.5, 0])]
)
def test_learning_rate_over_the_run(tmp_path: Path, rule: str, expected: list[float]) -> None:
    method = method_for(write_case(tmp_path, (20, 16)), lr_schedule=rule, iterations=10, learning_rate=2.0)
    optimizer = method.optimizer()
    scheduler = method.scheduler(optimizer)
    rates = []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"] / 2)
        optimizer.step()
        scheduler.step()

    assert [rates[0], rates[5], rates[10]] == pytest.approx(expected, abs=1e-9)


def test_constant_channel_becomes_zeros() -> None:
    image = MetaTensor(torch.stack([torch.full((4, 4), 7.0), torch.arange(16.0).reshape(4, 4)]), affine=torch.eye(3))

    got = normalise(image)

    assert float(got[0].abs().max()) == 0
    assert float(got[1].std(unbiased=False)) == pytest.approx(1)


def test_entropy_of_closed_forms() -> None:
    probabilities = torch.tensor([[[1.0, 1 / 3, 0.5]], [[0.0, 1 / 3, 0.5]], [[0.0, 1 / 3, 0.0]]])

    torch.testing.assert_close(
        normalised_entropy(probabilities)[0, 0], torch.tensor([0.0, 1.0, float(np.log(2) / np.log(3))])
    )
