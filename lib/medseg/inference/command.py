"""`medseg predict`: masks, measurements and pictures on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from medseg.cases import Case, case_id, image_suffix
from medseg.errors import MedsegError, NotFoundError
from medseg.files import write_atomically, write_json
from medseg.inference.markups import markups_json
from medseg.inference.predictor import Predictor
from medseg.methods.base import Prediction
from medseg.reports.overlays import Overlay, draw_overlay
from medseg.transforms.grid import spacing_of
from medseg.transforms.io import PICTURES, read_image, write_volume

WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha")


def predict_images(
    model: Path,
    images: Sequence[Path],
    out: Path,
    device: str,
    *,
    uncertainty: bool = False,
    overlay: bool = False,
    domain: str | None = None,
) -> Iterator[str]:
    """Predict images one by one; yields a line for each. A damaged one does not keep the others from being predicted.

    Writes `<id><suffix>` (the image's format where it can hold a mask, else .nii.gz or .png) and `<id>.json`, where the
    method finds points or lines `<id>.mrk.json` for 3D Slicer, on request `<id>_uncertainty<suffix>` and
    `<id>_overlay.png`. `domain` is the imaging domain of all of them; None: what file names and folders say.

    Raises:
        NotFoundError: an image does not exist; checked before the first is predicted.
        MedsegError: two images would write the same file, or a mask would replace its image; or, after the last image,
            some could not be predicted.
    """
    files = _files(images)
    replaced = next((f for f in files if _target(_case(f), Path(out)).resolve() == f.resolve()), None)
    if replaced is not None:
        raise MedsegError(f"the mask of {replaced} would replace the image itself; choose another --out")
    predictor = Predictor.from_folder(model, device)
    failed: dict[Path, MedsegError] = {}
    for path in files:
        try:
            target = _predict(replace(_case(path), domain=domain), predictor, out, uncertainty, overlay)
        except MedsegError as error:
            failed[path] = error
            if len(files) == 1:
                raise
            yield f"{path.name}: no prediction, {error}"
            continue
        yield f"{path.name} -> {target}"
    if failed:
        path, reason = next(iter(failed.items()))
        raise MedsegError(f"{len(failed)} of {len(files)} images have no prediction; the first, {path.name}: {reason}")


def _predict(case: Case, predictor: Predictor, out: Path, uncertainty: bool, overlay: bool) -> Path:
    """Predict one image and write its files; the path of the mask, or of the measurements where there is no mask."""
    prediction = predictor.predict(case)
    target = _write(prediction, case, predictor, out)
    if prediction.markups:
        write_json(out / f"{case.id}.mrk.json", markups_json(prediction.markups))
    if uncertainty and prediction.uncertainty is not None:
        suffix = image_suffix(target) if image_suffix(target) in WRITABLE else ".nii.gz"
        write_volume(out / f"{case.id}_uncertainty{suffix}", prediction.uncertainty)
    if overlay:
        _write_overlay(prediction, case, predictor, out / f"{case.id}_overlay.png")
    return target


def _files(images: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in images:
        if not path.exists():
            raise NotFoundError(f"image {path} does not exist")
        inside = [f for f in sorted(path.iterdir()) if image_suffix(f) not in (None, ".dcm")] if path.is_dir() else []
        files += inside or [path]
    names = [_case(f).id for f in files]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MedsegError(f"two images are called {twice[0]!r} and would write the same mask; predict them apart")
    return files


def _case(path: Path) -> Case:
    folder = path.resolve().parent
    dataset = folder.parent.name if folder.name == "images" else folder.name
    return Case(id=case_id(path) if path.is_file() else path.name, image=path, dataset=dataset)


def _target(case: Case, out: Path) -> Path:
    """Where the mask goes, in the image's format if that can hold one."""
    own = (image_suffix(case.image) or "").lower()
    return out / f"{case.id}{own if own in WRITABLE else '.png' if own in PICTURES else '.nii.gz'}"


def _write(prediction: Prediction, case: Case, predictor: Predictor, out: Path) -> Path:
    target = _target(case, out)
    if prediction.mask is not None:
        write_volume(target, prediction.mask)
    labels = predictor.method.labels if prediction.labels is None else prediction.labels
    sizes = (
        {name: int((prediction.mask == index).sum()) for name, index in labels.items()}
        if prediction.mask is not None
        else {}
    )
    write_json(
        out / f"{case.id}.json",
        {
            "image": case.image.name,
            "method": predictor.method.name,
            "labels": labels,
            "voxels": sizes,
            "measurements": {k: {"value": m.value, "unit": m.unit} for k, m in prediction.measurements.items()},
            "warnings": list(prediction.warnings),
            **prediction.facts,
        },
    )
    return target if prediction.mask is not None else out / f"{case.id}.json"


def _write_overlay(prediction: Prediction, case: Case, predictor: Predictor, path: Path) -> None:
    image = read_image(case.image)
    figure = predictor.method.picture(prediction, image, case.id)
    if figure is None and prediction.mask is not None:
        picture = Overlay(
            title=case.id,
            image=image.numpy() if image.shape[0] == 3 else image[0].numpy(),
            prediction=prediction.mask[0].numpy(),
            truth=None,
            uncertainty=prediction.uncertainty[0].numpy() if prediction.uncertainty is not None else None,
            spacing=spacing_of(image),
        )
        figure = draw_overlay(picture, predictor.method.labels if prediction.labels is None else prediction.labels)
    if figure is not None:
        write_atomically(path, partial(figure.savefig, dpi=120))
