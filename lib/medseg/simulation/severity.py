"""What a reader types before drawing: the lungs' regions and how much of each is diseased."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monailabel.client.client import MONAILabelClientException, MONAILabelUtils

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.methods.base import Method
from medseg.simulation.annotator import Annotator
from medseg.transforms.grid import to_canonical, to_grid
from medseg.transforms.io import read_mask, write_volume
from medseg.transforms.regions import split_thirds

logger = logging.getLogger(__name__)


def severity_of(
    case: Case, truth: Path, labels: Mapping[str, int], kind: type[Method], folder: Path
) -> tuple[Path, dict[str, Any]] | None:
    """Region mask and weak labels that a reader would give for an image.

    Regions: the case's own region mask, else six thirds of the lungs, which are all labels of the truth together.
    Extents: whole per cents of what the true mask says.

    Args:
        case: the image.
        truth: its true mask, in the numbers of `labels`.
        labels: label name -> number.
        kind: the method, which tells what follows from a mask.
        folder: where a region mask is written.

    Returns:
        File of the region mask, and the `weak` object; None where the method derives nothing from it.
    """
    regions = case.regions
    if regions is None:
        if len(labels) < 2:
            return None
        regions = folder / f"{case.id}.nii.gz"
        write_volume(regions, thirds_of(read_mask(truth)))
    weak = kind.derive_weak(replace(case, label=truth, regions=regions, weak=None, names=None), labels)
    if weak is None or not weak.extent:
        return None
    extent = {region: round(value) for region, value in weak.extent.items() if not isinstance(value, tuple)}
    return regions, {"extent": extent, "source": "reader", "by": "simulated reader"}


def thirds_of(mask: MetaTensor) -> MetaTensor:
    """Six thirds of the lungs, which are all labels of a mask (1, *grid) together, on the mask's own grid.

    Left, right, lower and upper are those of the body, however the file's axes run.
    """
    canonical = to_canonical(mask)
    thirds = split_thirds((canonical.as_tensor()[0] > 0).numpy())
    return to_grid(MetaTensor(torch.from_numpy(thirds)[None], affine=canonical.affine), mask, mode="nearest")


def type_severity(annotator: Annotator, image: str, regions: Path, weak: Mapping[str, Any]) -> None:
    """Save the region mask under its tag, then the extents in the image's info, over HTTP.

    Raises:
        MedsegError: the server refused one of them.
    """
    try:
        annotator.client.save_label(image, str(regions), tag="regions", params={})
        selector = f"/datastore/image/info?image={MONAILabelUtils.urllib_quote_plus(image)}"
        status, body, _, _ = MONAILabelUtils.http_multipart(
            "PUT", annotator.server.url, selector, {"info": json.dumps({"weak": dict(weak)})}, {}
        )
    except MONAILabelClientException as error:
        raise MedsegError(f"the server refused the regions of {image}: {error}") from error
    if status != 200:
        raise MedsegError(f"the server refused the extents of {image}: {body.decode(errors='replace')[:300]}")
