"""Reading and writing images, in one convention: channel first, axes (x, y[, z]), RAS affine.

nibabel reads NIfTI, SimpleITK the other volume formats, Pillow the pictures. MONAI's `LoadImage` is not used because
its ITK reader takes five seconds to import and because a damaged file must end in one sentence that names it.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from PIL import Image

from medseg.cases import IMAGE_SUFFIXES, image_suffix
from medseg.errors import MedsegError, NotFoundError, UnusableInputError
from medseg.files import write_atomically
from medseg.transforms.radiograph import is_picture, pixel_size

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_TAGS = {
    "modality": "0008|0060",
    "orientation": "0020|0037",
    "pixel": "0028|0030",
    "imager": "0018|1164",
    "aspect": "0028|0034",
}
SMALLEST = 1e-12  # mm^3 (or square pixels): less is no voxel
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_image(path: Path) -> MetaTensor:
    """Read an image as float32.

    Returns:
        (C, *grid) with affine: 4x4 in mm for volumes, 3x3 in pixels for pictures, 3x3 in mm for DICOM radiographs (in
        pixels where the header tells only their aspect). Axes are (x, y[, z]).

    Raises:
        NotFoundError: no such file.
        UnusableInputError: the file is damaged, empty, or holds values that are not finite.
    """
    return _read_tensor(Path(path))


def _read_tensor(path: Path, palette: bool = True) -> MetaTensor:
    array, affine = _read(path, palette)
    if array.size == 0 or min(array.shape) == 0:
        raise UnusableInputError(f"{path.name} holds no voxel; its shape is {array.shape}")
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if not torch.isfinite(tensor).all():
        raise UnusableInputError(f"{path.name} holds values that are not finite (NaN or infinity); export it again")
    check_affine(affine, path.name)
    return MetaTensor(tensor, affine=torch.from_numpy(affine))


def check_affine(affine: np.ndarray, name: str) -> None:
    """Refuse an affine that places no voxel, or several at one point.

    Raises:
        UnusableInputError: names the file.
    """
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:-1, :-1])) < SMALLEST:
        raise UnusableInputError(
            f"{name} does not tell where its voxels lie: its affine is {np.asarray(affine).round(4).tolist()}; export "
            "it again with its orientation"
        )


def read_mask(path: Path) -> MetaTensor:
    """Read a mask with whole-number values.

    Pictures that hold only 0 and 255, the usual way to save a binary mask as PNG, are read as 0 and 1; of pictures with
    a palette, the values are the labels and the colours are not looked at.

    Returns:
        (1, *grid) int16 with affine.

    Raises:
        UnusableInputError: fractional or negative values, or several channels.
    """
    image = _read_tensor(Path(path), palette=False)
    if image.shape[0] != 1:
        raise UnusableInputError(f"mask {Path(path).name} has {image.shape[0]} channels; save one label map")
    values = torch.unique(image.as_tensor())
    if (values != values.round()).any() or values.min() < 0 or values.max() > torch.iinfo(torch.int16).max:
        raise UnusableInputError(
            f"mask {Path(path).name} holds values {values[0]:g}..{values[-1]:g} that are not labels; save whole numbers"
        )
    mask = image.as_tensor().to(torch.int16)
    if Path(path).suffix.lower() in PICTURES and set(values.tolist()) <= {0.0, 255.0}:
        mask = (mask > 0).to(torch.int16)
    return MetaTensor(mask, affine=image.affine)


def write_volume(path: Path, volume: MetaTensor) -> Path:
    """Write (C, *grid) atomically; the format follows the suffix, whole-number dtypes are kept.

    Raises:
        MedsegError: a suffix that cannot be written, several channels in a picture, or values a picture cannot hold.
    """
    path = Path(path)
    suffix = (image_suffix(path) or path.suffix).lower()
    array = volume.as_tensor().cpu().numpy()
    array = array.astype(np.uint8) if array.dtype == bool else array
    affine = _affine4(volume.affine.cpu().numpy().astype(np.float64))

    def write(temporary: Path) -> None:
        if suffix in (".nii", ".nii.gz"):
            data = array[0] if array.shape[0] == 1 else np.moveaxis(array, 0, -1)
            image = nib.Nifti1Image(data.astype(np.int32) if data.dtype == np.int64 else data, affine)
            image.set_qform(affine, code=1)  # readers that look at one form only must find the same place
            image.set_sform(affine, code=1)
            image.header.set_xyzt_units("mm")
            nib.save(image, temporary)
        elif suffix in (".nrrd", ".mha"):
            sitk.WriteImage(_to_sitk(array, affine), str(temporary), useCompression=True)
        elif suffix in (".png", ".tif", ".tiff") and array.shape[0] == 1 and array.ndim == 3:
            Image.fromarray(_picture(path, array[0])).save(temporary)
        else:
            raise MedsegError(f"cannot write {tuple(array.shape)} as {suffix!r}; use .nii.gz, .nrrd, .mha or .png (2D)")

    return write_atomically(path, write)


def _read(path: Path, palette: bool) -> tuple[np.ndarray, np.ndarray]:
    """Array (C, x, y[, z]) and affine in RAS; `palette`: colours of a palette count, not the numbers they stand for."""
    if not path.exists():
        raise NotFoundError(f"image {path} does not exist")
    suffix = (image_suffix(path) or "").lower()
    if not suffix and not path.is_dir():
        raise UnusableInputError(f"{path.name} is not an image medseg reads; known: {', '.join(IMAGE_SUFFIXES)}")
    try:
        if suffix in (".nii", ".nii.gz"):
            return _read_nifti(path)
        if suffix in PICTURES:
            return _read_picture(path, palette)
        return _read_sitk(path)
    except MedsegError:
        raise
    except Exception as error:  # readers raise whatever they like; the user needs the file's name and the reason
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        reason = reason.replace(str(path), path.name)
        raise UnusableInputError(f"{path.name} cannot be read, it seems damaged: {reason}") from error


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(path)
    array = np.asanyarray(image.dataobj).astype(np.float32)  # type: ignore[attr-defined]
    affine = np.asarray(image.affine, dtype=np.float64)  # type: ignore[attr-defined]
    if array.ndim == 2:
        return array[None], affine[np.ix_([0, 1, 3], [0, 1, 3])]
    if array.ndim == 3:
        return array[None], affine
    if array.ndim == 4:
        return np.moveaxis(array, -1, 0), affine
    if array.ndim == 5 and array.shape[3] == 1:  # NIfTI keeps vector components on the fifth axis
        return np.moveaxis(array[:, :, :, 0], -1, 0), affine
    raise UnusableInputError(f"{path.name} has {array.ndim} axes; give a 2D or 3D image")


def _read_picture(path: Path, palette: bool) -> tuple[np.ndarray, np.ndarray]:
    with Image.open(path) as image:
        pages = getattr(image, "n_frames", 1)
        if pages > 1:
            raise UnusableInputError(f"{path.name} holds {pages} pages; save them apart, or as one volume in .nii.gz")
        if (
            image.mode == "1"
            or (image.mode in ("P", "PA") and palette)
            or image.mode in ("CMYK", "YCbCr", "LAB", "HSV")
        ):
            image = image.convert("L" if image.mode == "1" else "RGB")  # type: ignore[assignment]
        array = np.asarray(image)
    if array.ndim == 2:
        return array.T[None], np.eye(3)
    channels = 1 if array.shape[2] == 2 else 3  # grey + alpha, RGB or RGB + alpha
    return array[..., :channels].transpose(2, 1, 0), np.eye(3)


def _read_sitk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if path.is_dir():
        reader = sitk.ImageSeriesReader()
        files = reader.GetGDCMSeriesFileNames(str(path))
        if not files:
            raise UnusableInputError(f"folder {path.name} holds no DICOM series")
        reader.SetFileNames(files)
        image = reader.Execute()
    else:
        image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    dimension = image.GetDimension()
    if image.GetNumberOfComponentsPerPixel() == 1:
        array = array[..., None]
    spacing = image.GetSpacing()[:2]
    header = _dicom_header(path) if dimension == 3 and len(array) == 1 else None
    if header and is_picture(header["modality"], header["orientation"]):
        array, dimension = array[0], 2
        spacing = pixel_size(*(_numbers(header[key]) for key in ("pixel", "imager", "aspect")))
    array = np.moveaxis(array, -1, 0)
    array = array.transpose(0, *range(dimension, 0, -1))
    if dimension == 4 and array.shape[0] == 1:  # a series of volumes: its members are channels, as in NIfTI
        array = np.moveaxis(array[0], -1, 0)
    if dimension == 2:
        return array, np.diag([*spacing, 1.0])
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)
    affine[:3, :3] = direction[:3, :3] * np.array(image.GetSpacing())[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    return array, LPS_TO_RAS @ affine


def _dicom_header(path: Path) -> dict[str, str] | None:
    """What tells pictures from slices in a DICOM file, or in the first of a folder; None for other formats.

    ITK reads every DICOM file as a volume, and knows no size of a radiograph's pixels but at the detector. It also
    turns MONOCHROME1 into MONOCHROME2, so bones are bright.
    """
    file = path
    if path.is_dir():
        file = Path(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path))[0])
    elif (image_suffix(path) or "").lower() != ".dcm":
        return None
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    return {name: reader.GetMetaData(tag).strip() if reader.HasMetaDataKey(tag) else "" for name, tag in _TAGS.items()}


def _numbers(value: str) -> list[float]:
    """Numbers of a DICOM text such as 0.4\\0.2."""
    return [float(part) for part in value.split("\\") if part.strip()]


def _to_sitk(array: np.ndarray, affine: np.ndarray) -> sitk.Image:
    spatial = array.ndim - 1
    components = np.moveaxis(array, 0, -1).transpose(*range(spatial - 1, -1, -1), spatial)
    image = sitk.GetImageFromArray(
        components[..., 0] if array.shape[0] == 1 else components, isVector=array.shape[0] > 1
    )
    if spatial == 3:
        lps = LPS_TO_RAS @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing([float(s) for s in spacing])
        image.SetDirection((lps[:3, :3] / spacing).flatten().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
    else:
        image.SetSpacing([float(s) for s in np.linalg.norm(affine[:2, :2], axis=0)])
    return image


def _picture(path: Path, array: np.ndarray) -> np.ndarray:
    """(x, y) whole numbers as rows of 8 bits, or of 16 where they need them."""
    low, high = array.min(), array.max()
    if low < 0 or high > np.iinfo(np.uint16).max or (array != np.rint(array)).any():
        raise MedsegError(f"{path.name}: a picture holds whole numbers in 0..65535, got {low:g}..{high:g}; use .nii.gz")
    return np.ascontiguousarray(array.T, dtype=np.uint8 if high <= np.iinfo(np.uint8).max else np.uint16)


def _affine4(affine: np.ndarray) -> np.ndarray:
    """A 2D image's 3x3 affine as 4x4."""
    if affine.shape == (4, 4):
        return affine
    full = np.eye(4)
    full[:2, :2], full[:2, 3] = affine[:2, :2], affine[:2, 2]
    return full
