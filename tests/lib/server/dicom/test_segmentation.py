"""Masks as DICOM SEG and back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from medseg.errors import UnusableInputError
from medseg.server.dicom.codes import LabelCodes
from medseg.server.dicom.seg_read import label_info, read_segmentation, seg_facts
from medseg.server.dicom.seg_write import SegmentationFacts, segmentation, write_dicom
from medseg.server.dicom.series import Series, read_series
from medseg.server.label_grid import place_on_grid
from medseg.transforms.io import read_image, read_mask, write_volume

LABELS = {"liver": 1, "rest": 2, "my label": 3}
AFFINE = np.array([[-0.9, 0.2, 0.1, 5.0], [-0.2, -0.9, 0.3, 9.0], [0.1, 0.25, 2.6, -4.0], [0, 0, 0, 1.0]])
U, S, VT = np.linalg.svd(AFFINE[:3, :3])
AFFINE[:3, :3] = (U @ VT) @ np.diag([0.9, 1.1, 2.6])


def mask_like(shape: tuple[int, int, int]) -> np.ndarray:
    """Labels 1 and 3 on some slices, label 2 nowhere, the first slice and the last one empty."""
    mask = np.zeros(shape, np.uint8)
    mask[1:4, 2:5, 1 : shape[2] - 1] = 1
    mask[4:6, 1:6, 2] = 3
    return mask


def series_of(folder: Path) -> Series:
    return read_series(sorted(folder.glob("*.dcm")))


def random_affine(seed: int) -> np.ndarray:
    """Oblique, flipped, with axes in any order, anisotropic."""
    rng = np.random.default_rng(seed)
    spacing = rng.uniform(0.4, 5.0, 3)
    turn = Rotation.random(random_state=seed).as_matrix()[:, rng.permutation(3)] * rng.choice([-1.0, 1.0], 3)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ np.diag(spacing), rng.uniform(-200, 200, 3)
    return affine


@pytest.fixture
def series(make_series) -> Series:
    return series_of(make_series(np.arange(7 * 6 * 5).reshape(7, 6, 5), AFFINE)[0])


def test_mask_names_author_and_source_come_back(series: Series, tmp_path: Path) -> None:
    mask = mask_like(series.grid.shape)

    path = write_dicom(
        tmp_path / "seg.dcm",
        segmentation(mask, LABELS, series.grid, series.header, facts=SegmentationFacts(author="anna", description="x")),
    )
    ds = pydicom.dcmread(path)
    read = read_segmentation(ds, series.grid)
    facts = seg_facts(ds)

    assert read.exact
    np.testing.assert_array_equal(read.mask[0].numpy(), mask)
    assert facts.names == {1: "liver", 2: "rest", 3: "my label"}
    assert (facts.author, facts.image) == ("anna", series.header.SeriesInstanceUID)
    assert [entry["name"] for entry in label_info(facts, read.mask)] == list(LABELS)
    assert int(ds.NumberOfFrames) == 3 + 1  # slices 1..3 of liver and slice 2 of the other; nothing is stored twice
    assert ds.PatientID == series.header.PatientID
    assert ds.StudyInstanceUID == series.header.StudyInstanceUID


def test_codes_and_colours_are_known_or_stated(series: Series, tmp_path: Path) -> None:
    table = tmp_path / "codes.json"
    table.write_text(json.dumps({"My-Label": {"code": "4147007", "meaning": "Mass", "color": [10, 20, 30]}}))

    ds = segmentation(mask_like(series.grid.shape), LABELS, series.grid, series.header, LabelCodes(table))

    codes = [s.SegmentedPropertyTypeCodeSequence[0] for s in ds.SegmentSequence]
    assert [c.CodeValue for c in codes] == ["10200004", "85756007", "4147007"]
    assert codes[2].CodeMeaning == "Mass"
    assert LabelCodes(table).style("MY LABEL", 3).color == (10, 20, 30)
    assert LabelCodes().style("my label", 3).color == (0, 158, 115)


def test_a_wrong_table_names_the_entry(tmp_path: Path) -> None:
    table = tmp_path / "codes.json"
    table.write_text(json.dumps({"liver": {"code": "1", "meaning": "Liver", "color": [10, 20, 300]}}))

    with pytest.raises(UnusableInputError, match="'liver', color"):
        LabelCodes(table)


def test_a_mask_without_a_voxel_is_a_finished_label_too(series: Series, tmp_path: Path) -> None:
    ds = segmentation(np.zeros(series.grid.shape, np.uint8), LABELS, series.grid, series.header)
    path = write_dicom(tmp_path / "seg.dcm", ds)

    read = read_segmentation(pydicom.dcmread(path), series.grid)

    assert read.exact
    assert not read.mask.any()


def uneven(folder: Path) -> Path:
    """Moves the slices of a series so that their gaps grow."""
    for step, path in enumerate(sorted(folder.glob("*.dcm"))):
        ds = pydicom.dcmread(path)
        normal = np.cross(*np.array(ds.ImageOrientationPatient, float).reshape(2, 3))
        ds.ImagePositionPatient = [
            f"{v:.8f}" for v in np.array(ds.ImagePositionPatient, float) + normal * 0.4 * step**2
        ]
        ds.save_as(path)
    return folder


def by_dcmqi(path: Path, folder: Path) -> np.ndarray:
    """What dcmqi makes of a segmentation: it leaves out empty slices at the ends."""
    program = Path(sys.executable).parent / "segimage2itkimage"
    words = [program, "--inputDICOM", path, "--outputDirectory", folder, "-t", "nii", "--mergeSegments"]
    subprocess.run(words, check=True, capture_output=True)
    return read_mask(next(folder.glob("*.nii*")))[0].numpy()


@pytest.mark.parametrize("kind", ["empty", "uneven", "multi-frame", 0, 7, 13])
def test_dcmqi_reads_the_same_voxels(kind: str | int, make_series, data_dir: Path, tmp_path: Path) -> None:
    if kind == "multi-frame":
        series = series_of(data_dir / "dicom" / "dcmqi" / "24x38x3" / "multiframe")
    elif isinstance(kind, int):
        series = series_of(make_series(np.zeros((9, 7, 6)), random_affine(kind))[0])
    else:
        folder = make_series(np.zeros((7, 6, 5)), AFFINE)[0]
        series = series_of(uneven(folder) if kind == "uneven" else folder)
    mask = np.zeros(series.grid.shape, np.uint8) if kind == "empty" else mask_like(series.grid.shape)
    if kind == "multi-frame":
        mask[3:9, 4:20, 0] = 2

    path = write_dicom(tmp_path / "seg.dcm", segmentation(mask, LABELS, series.grid, series.header))
    got = by_dcmqi(path, tmp_path)

    marked = np.flatnonzero(mask.any(axis=(0, 1)))
    kept = mask[:, :, marked[0] : marked[-1] + 1] if len(marked) else mask[:, :, :1]
    np.testing.assert_array_equal(got, kept)


def test_dcmqi_reads_the_same_place_names_codes_and_colours(series: Series, tmp_path: Path) -> None:
    mask = mask_like(series.grid.shape)
    path = write_dicom(tmp_path / "seg.dcm", segmentation(mask, LABELS, series.grid, series.header))

    by_dcmqi(path, tmp_path)

    file = next(tmp_path.glob("*.nii*"))
    placed, _ = place_on_grid(read_mask(file), series.volume, file.name)
    np.testing.assert_array_equal(placed[0].numpy(), mask)
    segments = json.loads((tmp_path / "meta.json").read_text())["segmentAttributes"][0]
    assert [(s["labelID"], s["SegmentLabel"]) for s in segments] == [(1, "liver"), (2, "rest"), (3, "my label")]
    assert segments[0]["recommendedDisplayRGBValue"] == [0, 114, 178]
    assert segments[0]["SegmentedPropertyTypeCodeSequence"]["CodeValue"] == "10200004"


@pytest.mark.parametrize(("maximum", "value", "inside"), [(255, 255, True), (255, 127, False), (100, 51, True)])
def test_fractions_of_more_than_a_half_are_inside(
    series: Series, tmp_path: Path, maximum: int, value: int, inside: bool
) -> None:
    mask = mask_like(series.grid.shape)
    ds = segmentation(mask, {"liver": 1, "rest": 2, "other": 3}, series.grid, series.header)
    frames = pydicom.dcmread(write_dicom(tmp_path / "binary.dcm", ds)).pixel_array
    ds.SegmentationType, ds.SegmentationFractionalType, ds.MaximumFractionalValue = "FRACTIONAL", "PROBABILITY", maximum
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    content = (frames * value).astype(np.uint8).tobytes()
    ds.PixelData = content + b"\x00" * (len(content) % 2)

    read = read_segmentation(pydicom.dcmread(write_dicom(tmp_path / "fractional.dcm", ds)), series.grid)

    np.testing.assert_array_equal(read.mask[0].numpy(), mask if inside else np.zeros_like(mask))


@pytest.mark.parametrize("name", ["Läsion", "肝臓", "Łagodny"])
@pytest.mark.parametrize("source_set", [None, "ISO_IR 100"])
def test_names_hold_any_letter(series: Series, tmp_path: Path, name: str, source_set: str | None) -> None:
    header = pydicom.Dataset()
    header.update(series.header)
    header.PatientName = "Müller^Jörg" if source_set else "Mueller^Joerg"
    if source_set:
        header.SpecificCharacterSet = source_set
    facts = SegmentationFacts(author=name)

    ds = segmentation(mask_like(series.grid.shape), {name: 1, "b": 2, "c": 3}, series.grid, header, facts=facts)
    read = pydicom.dcmread(write_dicom(tmp_path / "seg.dcm", ds))

    assert (seg_facts(read).names[1], seg_facts(read).author) == (name, name)
    assert str(read.PatientName) == str(header.PatientName)


def test_names_that_dicom_would_cut_are_refused(series: Series) -> None:
    labels = {"a" * 64: 1, "a" * 64 + "b": 2}

    with pytest.raises(UnusableInputError, match="has 65 characters; DICOM has room for 64"):
        segmentation(mask_like(series.grid.shape), labels, series.grid, series.header)


def test_unevenly_spaced_slices_keep_their_own_labels(make_series, tmp_path: Path) -> None:
    series = series_of(uneven(make_series(np.zeros((7, 6, 5)), AFFINE)[0]))
    mask = mask_like(series.grid.shape)
    assert series.remarks

    path = write_dicom(tmp_path / "seg.dcm", segmentation(mask, LABELS, series.grid, series.header))
    read = read_segmentation(pydicom.dcmread(path), series.grid)

    assert read.exact
    np.testing.assert_array_equal(read.mask[0].numpy(), mask)


def test_multi_frame_sources_are_referred_to_by_frame(data_dir: Path, tmp_path: Path) -> None:
    series = series_of(data_dir / "dicom" / "dcmqi" / "24x38x3" / "multiframe")
    mask = np.zeros(series.grid.shape, np.uint8)
    mask[3:9, 4:20, 2] = 1

    ds = segmentation(mask, {"liver": 1}, series.grid, series.header)
    read = read_segmentation(pydicom.dcmread(write_dicom(tmp_path / "seg.dcm", ds)), series.grid)

    source = ds.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert source.ReferencedFrameNumber == 3
    np.testing.assert_array_equal(read.mask[0].numpy(), mask)


def test_segmentations_of_other_programs(data_dir: Path) -> None:
    folder = data_dir / "dicom" / "dcmqi"
    truth = read_mask(folder / "24x38x3" / "nrrd" / "label.nrrd")
    series = series_of(folder / "24x38x3" / "image")

    read = read_segmentation(pydicom.dcmread(folder / "24x38x3" / "seg" / "label.seg"), series.grid)

    placed, _ = place_on_grid(truth, series.volume, "label.nrrd")
    np.testing.assert_array_equal(read.mask[0].numpy(), placed[0].numpy())
    assert read.mask.any()


def test_overlapping_segments_are_told(data_dir: Path) -> None:
    folder = data_dir / "dicom" / "dcmqi"
    read = read_segmentation(pydicom.dcmread(folder / "partial_overlaps.dcm"), series_of(folder / "ct-3slice").grid)

    assert "belong to several segments" in read.remarks[0]


def test_label_maps_are_read(data_dir: Path) -> None:
    folder = data_dir / "dicom" / "dcmqi"
    ds = pydicom.dcmread(folder / "sparse-labelmap-noppv.dcm")
    assert ds.SegmentationType == "LABELMAP"

    read = read_segmentation(ds, series_of(folder / "24x38x3" / "image").grid)

    truth = read_mask(folder / "sparse_labelmap_noppv_seg.nrrd")
    placed, _ = place_on_grid(truth, series_of(folder / "24x38x3" / "image").volume, "truth")
    np.testing.assert_array_equal(read.mask[0].numpy(), placed[0].numpy())
    assert read.mask.any()


def test_frames_on_another_grid_make_a_volume_of_their_own(series: Series, make_series, tmp_path: Path) -> None:
    finer = AFFINE @ np.diag([0.5, 0.5, 1.0, 1.0])
    other = series_of(make_series(np.zeros((14, 12, 5)), finer)[0])
    mask = np.zeros((14, 12, 5), np.uint8)
    mask[2:8, 4:10, 1:4] = 1
    ds = segmentation(mask, {"liver": 1}, other.grid, series.header)
    ds.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence = []

    read = read_segmentation(pydicom.dcmread(write_dicom(tmp_path / "seg.dcm", ds)), series.grid)

    assert not read.exact
    placed, remarks = place_on_grid(read.mask, series.volume, "seg")
    assert placed.shape == series.volume.shape
    assert "resampled" in remarks[0]
    volume = float(placed.sum()) * abs(np.linalg.det(AFFINE[:3, :3]))
    assert volume == pytest.approx(float(mask.sum()) * abs(np.linalg.det(finer[:3, :3])), rel=0.35)


@pytest.mark.parametrize("slices", [[3, 5], [3, 6, 9], [4]])
@pytest.mark.parametrize("apart", [0.0, 1.2])
def test_planes_left_out_stay_empty_on_another_grid(
    slices: list[int], apart: float, make_series, tmp_path: Path
) -> None:
    coarse = series_of(make_series(np.zeros((20, 18, 12)), np.diag([1.0, 1.0, 3.0, 1.0]))[0])
    other = np.diag([0.5, 0.5, 3.0, 1.0])
    other[2, 3] = apart  # mm from the series' slices; below half of their distance
    fine = series_of(make_series(np.zeros((40, 36, 12)), other)[0])
    mask = np.zeros(fine.grid.shape, np.uint8)
    mask[10:20, 8:20, slices] = 1
    ds = segmentation(mask, {"liver": 1}, fine.grid, coarse.header)

    read = read_segmentation(pydicom.dcmread(write_dicom(tmp_path / "seg.dcm", ds)), coarse.grid)
    placed, _ = place_on_grid(read.mask, coarse.volume, "seg")

    assert not read.exact
    assert np.flatnonzero(placed[0].numpy().any((0, 1))).tolist() == slices
    assert int(placed.sum()) == pytest.approx(5 * 6 * len(slices), rel=0.4)  # nearest neighbour, on small areas


@pytest.mark.parametrize("seed", range(20))
def test_any_grid_survives_nifti_dicom_seg_and_back(seed: int, make_series, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(6, 14, 3))
    affine = random_affine(seed)
    truth = rng.integers(0, 4, shape).astype(np.uint8)
    nifti = MetaTensor(torch.from_numpy(truth)[None], affine=torch.from_numpy(affine))
    original = read_mask(write_volume(tmp_path / "truth.nii.gz", nifti))

    series = series_of(make_series(rng.normal(size=shape) * 100, affine)[0])
    image = read_image(write_volume(tmp_path / "image.nii.gz", series.volume))
    on_series, _ = place_on_grid(original, image, "truth")
    ds = segmentation(on_series[0].numpy(), LABELS, series.grid, series.header)
    read = read_segmentation(pydicom.dcmread(write_dicom(tmp_path / "seg.dcm", ds)), series.grid)
    back, remarks = place_on_grid(read.mask, original, "back")

    assert remarks == ()
    np.testing.assert_array_equal(back[0].numpy(), truth)  # Dice 1
    corners = np.array(np.meshgrid(*([0, n - 1] for n in shape), indexing="ij")).reshape(3, -1)
    here = affine[:3, :3] @ corners + affine[:3, 3:]
    turned = np.array(read.mask.affine)
    ends = np.array(np.meshgrid(*([0, n - 1] for n in read.mask.shape[1:]), indexing="ij")).reshape(3, -1)
    there = turned[:3, :3] @ ends + turned[:3, 3:]
    apart = np.linalg.norm(here[:, :, None] - there[:, None], axis=0).min(axis=1)
    assert apart.max() < 0.01  # mm; the first voxel and every direction
