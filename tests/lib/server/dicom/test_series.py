from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import EnhancedMRImageStorage, EnhancedPETImageStorage

from medseg.errors import UnusableInputError
from medseg.server.dicom.grid import SeriesGrid
from medseg.server.dicom.series import read_series
from medseg.transforms.io import read_image

AFFINE = np.diag([-1.5, -2.0, 3.0, 1.0])
AFFINE[:3, 3] = (10.0, 20.0, -30.0)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.dcm"))


def test_a_series_comes_back_as_the_volume_it_was_written_from(make_series) -> None:
    array = np.arange(5 * 4 * 3).reshape(5, 4, 3) - 7
    folder, uid = make_series(array, AFFINE, modality="MR")

    series = read_series(files(folder)[::-1])

    assert series.volume.shape == (1, 5, 4, 3)
    np.testing.assert_array_equal(series.volume[0].numpy(), array)
    np.testing.assert_allclose(series.volume.affine.numpy(), AFFINE, atol=1e-9)
    assert series.header.SeriesInstanceUID == uid
    assert series.remarks == ()
    assert SeriesGrid.from_dict(series.grid.to_dict()) == series.grid


def test_uneven_gaps_are_told_and_the_mean_gap_is_taken(make_series) -> None:
    folder, _ = make_series(np.zeros((4, 4, 4)), AFFINE)
    last = pydicom.dcmread(files(folder)[-1])
    x, y, z = (float(v) for v in last.ImagePositionPatient)
    last.ImagePositionPatient = [x, y, z + 3.0]
    last.save_as(files(folder)[-1])

    series = read_series(files(folder))

    assert series.grid.gap == pytest.approx(4.0)
    assert "3.00 to 6.00 mm apart" in series.remarks[0]


def test_repeated_places_and_foreign_slices_are_left_out(make_series) -> None:
    folder, _ = make_series(np.arange(48).reshape(4, 4, 3), AFFINE)
    again, _ = make_series(np.full((4, 4, 3), 99), AFFINE)
    other, _ = make_series(np.zeros((6, 6, 2)), AFFINE)
    for number, path in enumerate(files(again)):
        ds = pydicom.dcmread(path)
        ds.InstanceNumber = 100 + number
        ds.save_as(path)

    series = read_series([*files(other), *files(again), *files(folder)])

    np.testing.assert_array_equal(series.volume[0].numpy(), np.arange(48).reshape(4, 4, 3))
    assert "2 of 8 slices have another size" in series.remarks[0]
    assert "3 slices repeat a place" in series.remarks[1]


def test_colour_is_refused(make_series) -> None:
    folder, _ = make_series(np.zeros((4, 4, 1)), AFFINE)
    ds = pydicom.dcmread(files(folder)[0])
    ds.SamplesPerPixel = 3
    ds.save_as(files(folder)[0])

    with pytest.raises(UnusableInputError, match="in colour"):
        read_series(files(folder))


def test_multi_frame_objects_read_like_their_single_frames(data_dir: Path) -> None:
    folder = data_dir / "dicom" / "dcmqi" / "24x38x3"

    many, one = read_series(files(folder / "image")), read_series(files(folder / "multiframe"))

    assert one.volume.shape == (1, 24, 38, 3)
    np.testing.assert_array_equal(one.volume.numpy(), many.volume.numpy())
    np.testing.assert_allclose(one.volume.affine.numpy(), many.volume.affine.numpy(), atol=1e-6)
    assert [s.frame for s in one.grid.slices] == [1, 2, 3]


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("placed", [False, True])
def test_an_archive_reads_a_radiograph_like_a_file(
    data_dir: Path, tmp_path: Path, photometric: str, placed: bool
) -> None:
    ds = pydicom.dcmread(data_dir / "dicom" / "highdicom" / "dx_image.dcm")
    ds.PhotometricInterpretation = photometric
    ds.PixelSpacing = ["0.4", "0.2"]
    if placed:
        ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 0, -1], [5, 6, 7]
    ds.save_as(tmp_path / "a.dcm")

    series = read_series([tmp_path / "a.dcm"])

    file = read_image(tmp_path / "a.dcm")
    np.testing.assert_array_equal(series.volume.numpy(), file.numpy())
    assert series.volume.affine.diagonal().tolist() == file.affine.diagonal().tolist() == [0.2, 0.4, 1]
    assert float(series.volume.max()) > float(series.volume.min())


def test_a_radiograph_is_a_picture(data_dir: Path) -> None:
    series = read_series([data_dir / "dicom" / "highdicom" / "dx_image.dcm"])

    assert series.volume.shape == (1, 211, 169)
    assert series.volume.affine.shape == (3, 3)
    assert not series.grid.placed


@pytest.mark.parametrize("kind", [EnhancedMRImageStorage, EnhancedPETImageStorage])
@pytest.mark.parametrize("place", ["shared", "per frame"])
def test_frames_have_the_slope_that_is_stated_for_them(kind: str, place: str, data_dir: Path, tmp_path: Path) -> None:
    ds = pydicom.dcmread(next((data_dir / "dicom" / "dcmqi" / "24x38x3" / "multiframe").glob("*.dcm")))
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = kind
    shared, frames = ds.SharedFunctionalGroupsSequence[0], ds.PerFrameFunctionalGroupsSequence
    stated = [(0.5, 3.0), (2.0, -10.0), (4.0, 0.0)] if place == "per frame" else [(0.5, 3.0)] * 3
    source = shared.PixelValueTransformationSequence[0]
    del shared.PixelValueTransformationSequence
    for group, (slope, intercept) in zip([shared] if place == "shared" else frames, stated, strict=False):
        item = copy.deepcopy(source)
        item.RescaleSlope, item.RescaleIntercept = slope, intercept
        group.PixelValueTransformationSequence = pydicom.Sequence([item])
    ds.save_as(tmp_path / "frames.dcm")

    volume = read_series([tmp_path / "frames.dcm"]).volume[0].numpy()

    for k, (slope, intercept) in enumerate(stated):
        np.testing.assert_allclose(volume[:, :, k], ds.pixel_array[k].T * slope + intercept)
