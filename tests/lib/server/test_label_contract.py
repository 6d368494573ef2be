from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from filelock import FileLock
from monai.data import MetaTensor
from PIL import Image

from medseg.errors import UnusableInputError
from medseg.server.label_contract import CheckedLabel, check_label, label_suffix_for
from medseg.server.label_names import FixedLabels, LabelRegistry
from medseg.transforms.io import LPS_TO_RAS, read_image, read_mask, write_volume

SHAPE = (8, 9, 7)
NAMES = {"liver": 1, "spleen": 2, "kidney": 3}


@pytest.fixture
def image(tmp_path: Path, write_nifti: Any) -> Path:
    return write_nifti(tmp_path / "image.nii.gz", np.ones(SHAPE, np.float32))


@pytest.fixture
def mask() -> np.ndarray:
    """Values 1, 2, 3 in three separate boxes away from the border."""
    array = np.zeros(SHAPE, np.uint8)
    array[1:3, 1:4, 1:3], array[4:7, 1:4, 1:3], array[1:4, 5:8, 3:6] = 1, 2, 3
    return array


def _check(label: Path, image: Path, params: dict[str, Any] | None = None, **kwargs: Any) -> CheckedLabel:
    return check_label(label, image, params or {}, FixedLabels(NAMES), **kwargs)


def _array(checked: CheckedLabel) -> np.ndarray:
    return checked.mask[0].numpy()


def test_values_of_slicer_are_mapped_by_name_and_position_not_by_idx(
    tmp_path: Path, image: Path, mask: np.ndarray, write_nifti: Any
) -> None:
    label = write_nifti(tmp_path / "l.nii.gz", mask)
    # idx counts a skipped segment too and is off by one; value v is the v-th entry
    info = [{"name": "spleen", "idx": 2}, {"name": "kidney", "idx": 3}, {"name": "liver", "idx": 4}]
    checked = _check(label, image, {"label_info": info})
    wanted = np.select([mask == 1, mask == 2, mask == 3], [2, 3, 1])
    np.testing.assert_array_equal(_array(checked), wanted)
    assert checked.voxels == {"spleen": 12, "kidney": 18, "liver": 27}
    assert checked.labels == NAMES
    assert checked.remarks == ()


@pytest.mark.parametrize(
    "params",
    [
        {"label_names": ["spleen", "kidney", "liver"]},
        {"label_names": {"spleen": 1, "kidney": 2, "liver": 3}},
        {"params": {"label_names": {"spleen": 1, "kidney": 2, "liver": 3}}},
        {"label_info": [{"name": "background", "idx": 0}, {"name": "spleen"}, {"name": "kidney"}, {"name": "liver"}]},
        {"label_info": [{"name": " Spleen "}, {"name": "KIDNEY"}, {"name": "liver"}]},
    ],
)
def test_other_ways_to_name_the_values(
    tmp_path: Path, image: Path, mask: np.ndarray, write_nifti: Any, params: dict[str, Any]
) -> None:
    checked = _check(write_nifti(tmp_path / "l.nii.gz", mask), image, params)
    np.testing.assert_array_equal(_array(checked), np.select([mask == 1, mask == 2, mask == 3], [2, 3, 1]))


def test_without_names_the_apps_own_numbers_count(
    tmp_path: Path, image: Path, mask: np.ndarray, write_nifti: Any
) -> None:
    np.testing.assert_array_equal(_array(_check(write_nifti(tmp_path / "l.nii.gz", mask), image)), mask)


def test_two_segments_of_one_name_become_one_label(
    tmp_path: Path, image: Path, mask: np.ndarray, write_nifti: Any
) -> None:
    info = [{"name": "liver"}, {"name": "liver"}, {"name": "background"}]
    checked = _check(write_nifti(tmp_path / "l.nii.gz", mask), image, {"label_info": info})
    np.testing.assert_array_equal(_array(checked), (mask == 1) | (mask == 2))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"label_info": [{"name": "liver"}, {"name": "tumour"}, {"name": "kidney"}]}, ["'tumour'", "'spleen'"]),
        ({"label_info": [{"name": "liver"}, {"name": "spleen"}]}, ["value 3", "names 2 labels"]),
        ({"label_info": [{"nam": "liver"}]}, ["label_info", "name"]),
        ({"label_names": {"liver": "one"}}, ["label_names", "'one'", "whole numbers"]),
    ],
)
def test_unknown_names_and_values_are_refused_and_named(
    tmp_path: Path, image: Path, mask: np.ndarray, write_nifti: Any, params: dict[str, Any], words: list[str]
) -> None:
    label = write_nifti(tmp_path / "l.nii.gz", mask)
    with pytest.raises(UnusableInputError) as caught:
        _check(label, image, params)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_value_above_the_apps_labels_is_refused(tmp_path: Path, image: Path, write_nifti: Any) -> None:
    label = write_nifti(tmp_path / "l.nii.gz", np.full(SHAPE, 4, np.uint8))
    with pytest.raises(UnusableInputError, match=r"value 4.*labels 1\.\.3 \(liver, spleen, kidney\)"):
        _check(label, image)


def test_an_unknown_segment_without_voxels_does_no_harm(
    tmp_path: Path, image: Path, mask: np.ndarray, write_nifti: Any
) -> None:
    info = [{"name": n} for n in ("liver", "spleen", "kidney", "scratch")]
    checked = _check(write_nifti(tmp_path / "l.nii.gz", mask), image, {"label_info": info})
    np.testing.assert_array_equal(_array(checked), mask)


def test_floats_that_are_whole_are_accepted_and_others_refused(
    tmp_path: Path, image: Path, mask: np.ndarray, write_nifti: Any
) -> None:
    whole = write_nifti(tmp_path / "whole.nii.gz", mask.astype(np.float64))
    np.testing.assert_array_equal(_array(_check(whole, image)), mask)
    for bad, words in ((mask + 0.25, "fractional values such as 0.25"), (mask - 1.0, "negative value -1")):
        with pytest.raises(UnusableInputError, match=words):
            _check(write_nifti(tmp_path / "bad.nii.gz", bad.astype(np.float32)), image)
    with pytest.raises(UnusableInputError, match="not finite"):
        _check(write_nifti(tmp_path / "nan.nii.gz", np.where(mask, np.nan, 0.0)), image)


def test_an_empty_mask_is_accepted_with_a_remark(tmp_path: Path, image: Path, write_nifti: Any) -> None:
    checked = _check(write_nifti(tmp_path / "l.nii.gz", np.zeros(SHAPE, np.uint8)), image)
    assert checked.voxels == {"liver": 0, "spleen": 0, "kidney": 0}
    assert len(checked.remarks) == 1
    assert "empty" in checked.remarks[0]


def test_geometry_is_the_images_to_the_last_bit(
    tmp_path: Path, image: Path, mask: np.ndarray, write_nifti: Any, oblique: np.ndarray
) -> None:
    nearly = oblique.copy()
    nearly[:3, 3] += 1e-4
    checked = _check(write_nifti(tmp_path / "l.nii.gz", mask, nearly), image)
    stored = write_volume(tmp_path / f"out{label_suffix_for(image)}", checked.mask)
    np.testing.assert_array_equal(nib.load(stored).affine, nib.load(image).affine)
    np.testing.assert_array_equal(np.asarray(nib.load(stored).dataobj), mask)
    assert nib.load(stored).get_data_dtype() == np.uint8
    assert checked.remarks == ()


def test_flipped_and_permuted_axes_are_put_right_without_a_remark(
    tmp_path: Path, image: Path, mask: np.ndarray, write_nifti: Any, oblique: np.ndarray
) -> None:
    turn = np.zeros((4, 4))  # new index (k, i, j) with i reversed -> old index
    turn[0, 1], turn[1, 2], turn[2, 0], turn[0, 3], turn[3, 3] = -1, 1, 1, SHAPE[0] - 1, 1
    moved = np.transpose(mask[::-1], (2, 0, 1))
    checked = _check(write_nifti(tmp_path / "l.nii.gz", np.ascontiguousarray(moved), oblique @ turn), image)
    np.testing.assert_array_equal(_array(checked), mask)
    assert checked.remarks == ()


def test_a_label_on_a_finer_grid_is_resampled_with_a_remark(
    tmp_path: Path, image: Path, mask: np.ndarray, write_nifti: Any, oblique: np.ndarray
) -> None:
    fine = mask.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    step = np.diag([0.5, 0.5, 0.5, 1.0])
    step[:3, 3] = -0.25
    checked = _check(write_nifti(tmp_path / "l.nii.gz", fine, oblique @ step), image)
    np.testing.assert_array_equal(_array(checked), mask)
    assert any("resampled" in remark and "16 x 18 x 14" in remark for remark in checked.remarks)


def test_a_label_cropped_to_its_slices_finds_its_place(
    tmp_path: Path, image: Path, mask: np.ndarray, write_nifti: Any, oblique: np.ndarray
) -> None:
    step = np.eye(4)
    step[2, 3] = 1
    checked = _check(write_nifti(tmp_path / "l.nii.gz", mask[:, :, 1:6], oblique @ step), image)
    np.testing.assert_array_equal(_array(checked), mask)


def test_what_lies_outside_is_cut_with_a_remark_and_refused_when_all_does(
    tmp_path: Path, image: Path, mask: np.ndarray, write_nifti: Any, oblique: np.ndarray
) -> None:
    shifted = oblique.copy()
    shifted[:3, 3] += oblique[:3, 0] * 4
    checked = _check(write_nifti(tmp_path / "l.nii.gz", mask, shifted), image)
    share = (np.argwhere(mask)[:, 0] > 3).mean()
    assert any(f"{share:.1%} of the label lies outside" in remark for remark in checked.remarks)
    assert "nothing is left of 'spleen'" in " ".join(checked.remarks)
    np.testing.assert_array_equal(_array(checked)[4:], np.where(mask == 2, 0, mask)[:4])
    shifted[:3, 3] += 1000
    with pytest.raises(UnusableInputError, match="wholly outside"):
        _check(write_nifti(tmp_path / "far.nii.gz", mask, shifted), image)


def test_a_slight_rotation_is_noticed(tmp_path: Path, write_nifti: Any) -> None:
    """0.01 rad hardly changes the affine's entries, but moves the far end of a long volume by voxels."""
    image = write_nifti(tmp_path / "long.nii.gz", np.ones((300, 4, 4), np.float32), np.eye(4))
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.01), -np.sin(0.01)], [np.sin(0.01), np.cos(0.01)]]
    mask = np.zeros((300, 4, 4), np.uint8)
    mask[:, 1, 1:3] = 1
    checked = _check(write_nifti(tmp_path / "l.nii.gz", mask, turned), image)
    found = _array(checked)
    assert found[5, 1, 1] == 1
    assert found[120, 1, 1] == 0  # 1.2 voxels off by then
    assert found[120, 2, 1] == 1


def test_nrrd_and_mha_of_other_programs_match_nifti(tmp_path: Path, image: Path, mask: np.ndarray) -> None:
    affine = read_image(image).affine
    for suffix in (".nrrd", ".mha"):
        label = write_volume(tmp_path / f"l{suffix}", MetaTensor(mask[None], affine=affine))
        checked = _check(label, image)
        np.testing.assert_array_equal(_array(checked), mask)
        assert checked.remarks == ()


@pytest.mark.parametrize(("label_shape", "image_shape"), [((8, 9), SHAPE), (SHAPE, (8, 9))])
def test_another_dimension_is_refused(
    tmp_path: Path, write_nifti: Any, label_shape: tuple[int, ...], image_shape: tuple[int, ...]
) -> None:
    image = write_nifti(tmp_path / "i.nii.gz", np.ones(image_shape, np.float32), np.eye(4))
    label = write_nifti(tmp_path / "l.nii.gz", np.ones(label_shape, np.uint8), np.eye(4))
    with pytest.raises(UnusableInputError, match=r"[23]D .* but its image is [23]D"):
        _check(label, image)


def test_one_hot_channels_become_a_label_map(tmp_path: Path, image: Path, mask: np.ndarray, write_nifti: Any) -> None:
    channels = np.stack([mask == v for v in (1, 2, 3)], axis=-1).astype(np.uint8)
    np.testing.assert_array_equal(_array(_check(write_nifti(tmp_path / "l.nii.gz", channels), image)), mask)
    with_background = np.concatenate([1 - channels.max(-1, keepdims=True), channels], axis=-1)
    np.testing.assert_array_equal(_array(_check(write_nifti(tmp_path / "b.nii.gz", with_background), image)), mask)
    overlapping = channels.copy()
    overlapping[..., 2] |= overlapping[..., 0]
    checked = _check(write_nifti(tmp_path / "o.nii.gz", overlapping), image)
    assert "12 voxels belong to several segments" in checked.remarks[0]
    with pytest.raises(UnusableInputError, match="3 channels with values up to 7"):
        _check(write_nifti(tmp_path / "x.nii.gz", channels * 7), image)


def _seg_nrrd(path: Path, layers: np.ndarray, like: Path, segments: list[tuple[str, int, int]]) -> Path:
    """Slicer's form: layers (L, x, y, z) as vector components, segments as (name, layer, value) in the header."""
    affine = LPS_TO_RAS @ read_image(like).affine.numpy()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = sitk.GetImageFromArray(layers.transpose(3, 2, 1, 0), isVector=True)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    for number, (name, layer, value) in enumerate(segments):
        for key, text in (("ID", f"s{number}"), ("Name", name), ("Layer", layer), ("LabelValue", value)):
            image.SetMetaData(f"Segment{number}_{key}", str(text))
    sitk.WriteImage(image, str(path))
    return path


def test_segments_on_layers_are_collapsed_by_their_own_names(tmp_path: Path, image: Path, mask: np.ndarray) -> None:
    layers = np.stack([np.where(mask == 1, 5, 0) + np.where(mask == 2, 1, 0), np.where(mask == 3, 1, 0)])
    segments = [("kidney", 0, 5), ("liver", 0, 1), ("spleen", 1, 1)]
    label = _seg_nrrd(tmp_path / "l.seg.nrrd", layers.astype(np.uint8), image, segments)
    # the header is the file's own word, so a contradicting label_info does not count
    checked = _check(label, image, {"label_info": [{"name": "liver"}]})
    np.testing.assert_array_equal(_array(checked), np.select([mask == 1, mask == 2, mask == 3], [3, 1, 2]))
    assert checked.remarks == ()
    unnamed = _seg_nrrd(tmp_path / "u.seg.nrrd", layers.astype(np.uint8), image, segments[:2])
    with pytest.raises(UnusableInputError, match="none of its 2 segments"):
        _check(unnamed, image)


def test_pictures(tmp_path: Path, write_nifti: Any) -> None:
    mask = np.zeros((12, 9), np.uint8)  # rows, columns
    mask[3:8, 2:5] = 1
    Image.fromarray(np.full((12, 9, 3), 80, np.uint8)).save(tmp_path / "image.png")
    image = tmp_path / "image.png"
    Image.fromarray(mask * 255).save(tmp_path / "binary.png")
    Image.fromarray(np.stack([mask] * 3, -1)).save(tmp_path / "grey.png")
    colour = np.stack([mask, mask * 0, mask * 0], -1)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    slicer = write_nifti(tmp_path / "slicer.nii.gz", mask.T[..., None], np.diag([-1.0, -1.0, 1.0, 1.0]))
    for label in (tmp_path / "binary.png", tmp_path / "grey.png", slicer):
        checked = _check(label, image)
        stored = write_volume(tmp_path / f"stored{label_suffix_for(image)}", checked.mask)
        assert stored.suffix == ".png"
        np.testing.assert_array_equal(read_mask(stored)[0].numpy(), mask.T)
        np.testing.assert_array_equal(np.asarray(Image.open(stored)), mask)
    with pytest.raises(UnusableInputError, match="colour picture"):
        _check(tmp_path / "colour.png", image)
    Image.fromarray(mask.T).save(tmp_path / "turned.png")
    with pytest.raises(UnusableInputError, match="12 x 9 pixels and its image 9 x 12"):
        _check(tmp_path / "turned.png", image)


def test_damaged_labels_and_images_are_named(tmp_path: Path, image: Path, mask: np.ndarray, write_nifti: Any) -> None:
    label = write_nifti(tmp_path / "l.nii.gz", mask)
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(label.read_bytes()[:-20])
    with pytest.raises(UnusableInputError, match=r"cut\.nii\.gz"):
        _check(cut, image)
    (tmp_path / "noise.nii.gz").write_bytes(b"no image at all")
    with pytest.raises(UnusableInputError, match=r"noise\.nii\.gz"):
        _check(label, tmp_path / "noise.nii.gz")


@pytest.mark.parametrize(("value", "words"), [(3e9, "value 3000000000, but label values end at 65535"), (300, "300")])
def test_values_far_above_any_label_are_refused_and_register_nothing(
    tmp_path: Path, image: Path, mask: np.ndarray, write_nifti: Any, value: float, words: str
) -> None:
    label = write_nifti(tmp_path / "l.nii.gz", np.where(mask == 3, value, mask).astype(np.float64))
    registry = LabelRegistry(tmp_path, FileLock(tmp_path / "lock"))
    with pytest.raises(UnusableInputError, match=words):
        check_label(label, image, {}, registry)
    assert registry.labels() == {}


def test_a_named_value_above_the_apps_numbers_is_mapped(
    tmp_path: Path, image: Path, mask: np.ndarray, write_nifti: Any
) -> None:
    label = write_nifti(tmp_path / "l.nii.gz", np.where(mask == 3, 2035, 0).astype(np.int16))
    checked = _check(label, image, {"label_names": {"kidney": 2035}})
    np.testing.assert_array_equal(_array(checked), np.where(mask == 3, 3, 0))


def test_region_masks_keep_their_values(tmp_path: Path, image: Path, write_nifti: Any) -> None:
    regions = np.zeros(SHAPE, np.uint8)
    regions[2:5, 2:5, 2:5], regions[5:7, 2:5, 2:5] = 9, 200
    checked = check_label(write_nifti(tmp_path / "r.nii.gz", regions), image, {}, None, None)
    np.testing.assert_array_equal(_array(checked), regions)
    assert checked.voxels == {"9": 27, "200": 18}


def test_remarks_on_stray_pieces_missing_labels_and_the_border(tmp_path: Path, image: Path, write_nifti: Any) -> None:
    array = np.zeros(SHAPE, np.uint8)
    array[1:5, 1:5, 1:5] = 1
    array[6, 7, 5] = 1
    array[0:2, 6:8, 1:4] = 2
    label = write_nifti(tmp_path / "l.nii.gz", array)
    remarks = _check(label, image, usual=("kidney", "liver")).remarks
    assert remarks == (
        "'kidney' is missing, which most finished labels have",
        "'liver' has 1 small separate piece (1 of 65 voxels); check for stray strokes",
        "'spleen' touches the border of the image; check whether it is cut off",
    )
    assert _check(label, image, usual=None).remarks == ()
