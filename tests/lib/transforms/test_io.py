from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from PIL import Image
from scipy.spatial.transform import Rotation

from medseg.errors import MedsegError, NotFoundError, UnusableInputError
from medseg.transforms.io import read_image, read_mask, write_volume

SHAPE = (6, 5, 4)


def oblique(spacing: tuple[float, float, float] = (0.7, 1.1, 3.0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec([0.2, -0.3, 0.4]).as_matrix() @ np.diag([-spacing[0], *spacing[1:]])
    affine[:3, 3] = (-12.5, 40.25, 7.0)
    return affine


def volume(dtype: torch.dtype = torch.float32, channels: int = 1) -> MetaTensor:
    values = torch.arange(channels * 120, dtype=torch.float32).reshape(channels, *SHAPE).to(dtype)
    return MetaTensor(values, affine=torch.from_numpy(oblique()))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_volume_with_oblique_anisotropic_affine_survives(tmp_path: Path, suffix: str) -> None:
    back = read_image(write_volume(tmp_path / f"1.2{suffix}", volume()))

    assert back.dtype == torch.float32
    assert torch.equal(back.as_tensor(), volume().as_tensor())
    np.testing.assert_allclose(back.affine, oblique(), atol=1e-5)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_channels_survive(tmp_path: Path, suffix: str) -> None:
    back = read_image(write_volume(tmp_path / f"a{suffix}", volume(channels=3)))

    assert torch.equal(back.as_tensor(), volume(channels=3).as_tensor())
    np.testing.assert_allclose(back.affine, oblique(), atol=1e-5)


def test_nifti_and_nrrd_of_one_volume_agree_with_simpleitk(tmp_path: Path) -> None:
    """SimpleITK is the outside judge: it reads both files in LPS, and must see the same voxels at the same place."""
    nifti, nrrd = (write_volume(tmp_path / name, volume()) for name in ("a.nii.gz", "a.nrrd"))
    one, other = sitk.ReadImage(str(nifti)), sitk.ReadImage(str(nrrd))

    np.testing.assert_allclose(one.GetOrigin(), other.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(one.GetDirection(), other.GetDirection(), atol=1e-5)
    np.testing.assert_allclose(one.GetSpacing(), (0.7, 1.1, 3.0), rtol=1e-5)
    np.testing.assert_allclose(one.TransformIndexToPhysicalPoint((5, 0, 3)), lps((5, 0, 3)), atol=1e-4)
    assert np.array_equal(sitk.GetArrayFromImage(one), sitk.GetArrayFromImage(other))


def lps(index: tuple[int, int, int]) -> np.ndarray:
    return np.diag([-1, -1, 1]) @ (oblique() @ [*index, 1])[:3]


def test_file_of_simpleitk_reads_like_nibabels(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.arange(120, dtype=np.int16).reshape(4, 5, 6))
    image.SetSpacing((0.5, 2, 3))
    image.SetOrigin((1, 2, 3))
    image.SetDirection(Rotation.from_rotvec([0, 0.5, 0.1]).as_matrix().flatten().tolist())
    for name in ("a.nii.gz", "a.nrrd", "a.mhd"):
        sitk.WriteImage(image, str(tmp_path / name))
    expected = nib.load(tmp_path / "a.nii.gz")

    for name in ("a.nii.gz", "a.nrrd", "a.mhd"):
        read = read_image(tmp_path / name)
        np.testing.assert_array_equal(read[0], expected.get_fdata())
        np.testing.assert_allclose(read.affine, expected.affine, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.bool])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_masks_of_any_whole_number_type_survive(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    mask = volume(dtype)

    back = read_mask(write_volume(tmp_path / f"m{suffix}", mask))

    assert back.dtype == torch.int16
    assert torch.equal(back.as_tensor(), mask.as_tensor().to(torch.int16))


def test_series_of_volumes_has_its_members_as_channels(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(6, 5, 4, 3)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, oblique()), tmp_path / "a.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(values.transpose(3, 2, 1, 0), isVector=False), str(tmp_path / "a.mha"))

    for name in ("a.nii.gz", "a.mha"):
        read = read_image(tmp_path / name)
        assert read.shape == (3, 6, 5, 4)
        assert read.affine.shape == (4, 4)
        np.testing.assert_array_equal(read, values.transpose(3, 0, 1, 2))


def test_flat_nifti_is_a_2d_image_with_its_spacing(tmp_path: Path) -> None:
    values = np.arange(30, dtype=np.uint8).reshape(6, 5)
    nib.save(nib.Nifti1Image(values, np.diag([-0.5, 2.0, 1.0, 1.0])), tmp_path / "a.nii")

    read = read_image(tmp_path / "a.nii")
    np.testing.assert_array_equal(read[0], values)
    np.testing.assert_array_equal(read.affine, np.diag([-0.5, 2.0, 1.0]))
    again = read_image(write_volume(tmp_path / "b.nii.gz", read))
    assert again.shape == (1, 6, 5)
    np.testing.assert_array_equal(again.affine, read.affine)
    assert sitk.ReadImage(str(write_volume(tmp_path / "c.mha", read))).GetSpacing() == (0.5, 2.0)


def save_picture(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    Image.fromarray(array, mode).save(path)
    return path


def test_pictures_are_x_y_with_their_channels(tmp_path: Path) -> None:
    rows, columns = 5, 7
    grey = np.arange(35, dtype=np.uint8).reshape(rows, columns)
    rgb = np.stack([grey, grey + 50, grey + 100], axis=-1)
    rgba = np.concatenate([rgb, np.full((rows, columns, 1), 255, np.uint8)], axis=-1)
    deep = (grey.astype(np.uint16) + 1000) * 50

    for name, array, expected in (
        ("grey.png", grey, grey[None].transpose(0, 2, 1)),
        ("rgb.png", rgb, rgb.transpose(2, 1, 0)),
        ("rgba.png", rgba, rgb.transpose(2, 1, 0)),
        ("deep.png", deep, deep[None].transpose(0, 2, 1)),
        ("rgb.tif", rgb, rgb.transpose(2, 1, 0)),
    ):
        read = read_image(save_picture(tmp_path / name, array))
        np.testing.assert_array_equal(read, expected, err_msg=name)
        np.testing.assert_array_equal(read.affine, np.eye(3))


def test_palette_counts_as_colours_in_an_image_and_as_labels_in_a_mask(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], np.uint8), "P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 10, 20, 30])
    picture.save(tmp_path / "p.png")

    image, mask = read_image(tmp_path / "p.png"), read_mask(tmp_path / "p.png")

    assert image[:, 2, 0].tolist() == [10, 20, 30]
    assert mask[0].tolist() == [[0, 2], [1, 1], [2, 0]]


def test_grey_with_transparency_has_one_channel(tmp_path: Path) -> None:
    array = np.dstack([np.arange(6, dtype=np.uint8).reshape(2, 3), np.full((2, 3), 9, np.uint8)])

    assert read_image(save_picture(tmp_path / "la.png", array, "LA"))[0].tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("mode", ["8 bit", "1 bit"])
def test_mask_of_0_and_255_is_0_and_1(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(np.array([[0, 255, 0], [255, 255, 0]], np.uint8))
    (picture if mode == "8 bit" else picture.convert("1")).save(tmp_path / "m.png")

    assert read_mask(tmp_path / "m.png")[0].tolist() == [[0, 1], [1, 1], [0, 0]]


def test_255_beside_other_labels_stays(tmp_path: Path) -> None:
    save_picture(tmp_path / "m.png", np.array([[0, 1, 255]], np.uint8))

    assert read_mask(tmp_path / "m.png")[0].flatten().tolist() == [0, 1, 255]


def test_mask_is_written_as_png_and_back(tmp_path: Path) -> None:
    mask = MetaTensor(torch.arange(12, dtype=torch.int64).reshape(1, 4, 3), affine=torch.eye(3))

    back = read_mask(write_volume(tmp_path / "m.png", mask))

    assert torch.equal(back.as_tensor(), mask.as_tensor().to(torch.int16))
    with Image.open(tmp_path / "m.png") as picture:
        assert picture.size == (4, 3)


def test_picture_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match=r"0\.\.65535.*\.nii\.gz"):
        write_volume(tmp_path / "m.png", MetaTensor(torch.full((1, 4, 3), 0.5), affine=torch.eye(3)))
    with pytest.raises(MedsegError, match=r"cannot write \(1, 6, 5, 4\) as '\.png'"):
        write_volume(tmp_path / "m.png", volume(torch.uint8))
    with pytest.raises(MedsegError, match=r"'\.txt'"):
        write_volume(tmp_path / "m.txt", volume())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    values = np.zeros(SHAPE, np.float32)
    values[1, 2, 3] = value
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")

    with pytest.raises(UnusableInputError, match=r"^a\.nii\.gz holds values that are not finite"):
        read_image(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(("entry", "value"), [((0, 0), 0.0), ((1, 3), np.nan), ((2, 2), np.inf)])
@pytest.mark.parametrize("read", [read_image, read_mask])
def test_an_affine_that_places_no_voxel_is_refused(
    tmp_path: Path, entry: tuple[int, int], value: float, read: Callable[[Path], MetaTensor]
) -> None:
    volume = nib.Nifti1Image(np.ones(SHAPE, np.uint8), np.eye(4))
    sform = np.eye(4)
    sform[entry] = value
    volume.header["srow_x"], volume.header["srow_y"], volume.header["srow_z"] = sform[:3]
    volume.header["sform_code"], volume.header["qform_code"] = 1, 0
    (tmp_path / "a.nii").write_bytes(volume.header.binaryblock + bytes(4) + volume.dataobj.tobytes())

    with pytest.raises(UnusableInputError, match=r"^a\.nii (does not tell where its voxels lie|cannot be read)"):
        read(tmp_path / "a.nii")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha", "a.png", "a.jpg"])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_truncated_and_empty_files_are_one_sentence(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 8), dtype=np.uint8)
    if name.endswith((".png", ".jpg")):
        Image.fromarray(noise[..., 0]).save(path)
    else:
        write_volume(path, MetaTensor(torch.from_numpy(noise)[None], affine=torch.eye(4)))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    with pytest.raises(UnusableInputError, match=rf"^{name} cannot be read, it seems damaged: ") as caught:
        read_image(path)

    assert "\n" not in str(caught.value)


def test_missing_file_and_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"a\.nii\.gz does not exist"):
        read_image(tmp_path / "a.nii.gz")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UnusableInputError, match=r"a\.txt is not an image medseg reads; known: \.nii\.gz"):
        read_image(tmp_path / "a.txt")


def test_folder_without_dicom_series(tmp_path: Path) -> None:
    with pytest.raises(UnusableInputError, match="holds no DICOM series"):
        read_image(tmp_path)


def test_picture_of_several_pages_is_not_read_as_its_first(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((4, 4), v, np.uint8)) for v in (1, 2)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])

    with pytest.raises(UnusableInputError, match=r"a\.tif holds 2 pages"):
        read_image(tmp_path / "a.tif")


def test_uppercase_suffix_is_read(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii.gz", volume()).rename(tmp_path / "A.NII.GZ")

    assert torch.equal(read_image(tmp_path / "A.NII.GZ").as_tensor(), volume().as_tensor())


@pytest.mark.parametrize(("value", "words"), [(0.5, "0..0.5"), (-1.0, "-1..0"), (40000.0, "0..40000")])
def test_masks_hold_whole_numbers(tmp_path: Path, value: float, words: str) -> None:
    values = torch.zeros(1, *SHAPE)
    values[0, 0, 0, 0] = value
    path = write_volume(tmp_path / "m.nii.gz", MetaTensor(values, affine=torch.eye(4)))

    with pytest.raises(UnusableInputError, match=f"m.nii.gz holds values {words} that are not labels"):
        read_mask(path)


def test_mask_with_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableInputError, match=r"m\.nrrd has 3 channels"):
        read_mask(write_volume(tmp_path / "m.nrrd", volume(channels=3)))


def test_real_dicom_series_is_a_volume_in_hounsfield_units(data_dir: Path) -> None:
    image = read_image(data_dir / "dicom" / "ct_vhf_ankle")

    assert image.ndim == 4
    assert image.shape[3] == 30
    assert float(image.min()) < -500
    assert float(image.max()) > 300
    assert float(torch.linalg.det(image.affine[:3, :3])) != 0


def radiograph(path: Path, pixels: np.ndarray, photometric: str = "MONOCHROME2") -> Path:
    """Write a DX image of rows of pixels, 0.4 mm high and 0.2 mm wide."""
    pydicom = pytest.importorskip("pydicom")
    image = sitk.GetImageFromArray(pixels[None])
    image.SetSpacing((0.2, 0.4, 1.0))
    image.SetMetaData("0008|0060", "DX")
    image.SetMetaData("0008|0016", "1.2.840.10008.5.1.4.1.1.1.1")
    sitk.WriteImage(image, str(path))
    header = pydicom.dcmread(path)
    header.PhotometricInterpretation = photometric
    header.save_as(path)
    return path


def test_a_dicom_radiograph_is_a_picture_with_millimetres(tmp_path: Path) -> None:
    pixels = np.arange(60 * 40, dtype=np.uint16).reshape(60, 40)

    image = read_image(radiograph(tmp_path / "a.dcm", pixels))

    assert image.shape == (1, 40, 60)
    assert np.array_equal(image[0].numpy(), pixels.T)
    assert image.affine.tolist() == [[0.2, 0, 0], [0, 0.4, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("facts", "spacing"),
    [
        ({"PixelSpacing": ["0.4", "0.2"]}, (0.2, 0.4)),
        ({"PixelSpacing": ["0.4", "0.2"], "ImagerPixelSpacing": ["0.5", "0.25"]}, (0.2, 0.4)),
        ({"ImagerPixelSpacing": ["0.5", "0.25"], "PixelAspectRatio": ["1", "1"]}, (0.25, 0.5)),
        ({"PixelAspectRatio": ["2", "1"]}, (1, 2)),
        (
            {"ImagerPixelSpacing": ["0.4", "0.2"], "ImageOrientationPatient": ["1", "0", "0", "0", "0", "-1"]},
            (0.2, 0.4),
        ),
        ({}, (1, 1)),
    ],
)
def test_sizes_of_pixels_as_devices_write_them(
    facts: dict[str, list[str]], spacing: tuple[float, float], tmp_path: Path
) -> None:
    pydicom = pytest.importorskip("pydicom")
    file = radiograph(tmp_path / "a.dcm", np.arange(60 * 40, dtype=np.uint16).reshape(60, 40))
    header = pydicom.dcmread(file)
    for name in ("PixelSpacing", "ImagerPixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"):
        if name in header:
            delattr(header, name)
    for name, value in facts.items():
        setattr(header, name, value)
    header.save_as(file)

    image = read_image(file)

    assert image.shape == (1, 40, 60)
    assert image.affine.diagonal().tolist() == pytest.approx([*spacing, 1])


def test_an_inverted_radiograph_is_turned_to_bright_bones(tmp_path: Path) -> None:
    pixels = np.arange(60 * 40, dtype=np.uint16).reshape(60, 40)

    image = read_image(radiograph(tmp_path / "a.dcm", pixels, "MONOCHROME1"))[0]

    assert torch.equal(image.max() - image, torch.from_numpy(pixels.T.astype(np.float32)))


def test_a_folder_with_one_radiograph_is_a_picture(tmp_path: Path) -> None:
    radiograph(tmp_path / "a.dcm", np.arange(60 * 40, dtype=np.uint16).reshape(60, 40))

    assert read_image(tmp_path).shape == (1, 40, 60)


def test_a_single_slice_with_a_place_in_space_stays_a_volume(data_dir: Path) -> None:
    file = next((data_dir / "dicom" / "ct_vhf_ankle").glob("*.dcm"))

    assert read_image(file).shape[-1] == 1
    assert read_image(file).affine.shape == (4, 4)
