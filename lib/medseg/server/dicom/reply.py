"""`POST /infer/{model}?output=dicom_seg`: a prediction as a DICOM SEG.

Upstream makes one for its own datastore only, and with dcmqi's programs.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.background import BackgroundTask
from starlette.responses import FileResponse

from medseg.errors import UnusableInputError
from medseg.server.dicom.folders import IMAGE_SUFFIX
from medseg.server.dicom.seg_write import SegmentationFacts, write_dicom
from medseg.server.http_errors import parse_object
from medseg.server.intake import signer


def with_dicom_seg(app: Any, endpoint: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Upstream's endpoint, with this one form of reply made here."""

    @functools.wraps(endpoint)
    async def infer(**arguments: Any) -> Any:
        if getattr(arguments.get("output"), "value", None) != "dicom_seg":
            return await endpoint(**arguments)
        return dicom_seg_reply(app, arguments["model"], arguments["image"], parse_object(arguments["params"], "params"))

    return infer


def dicom_seg_reply(app: Any, model: str, image: str, params: dict[str, Any]) -> FileResponse:
    """Predict an image of the archive; the reply removes its file once it is sent.

    Raises:
        MedsegError: as the model's own; or it makes no mask.
    """
    result = app.infer({**params, "model": model, "image": image, "result_extension": IMAGE_SUFFIX})
    mask = Path(result["file"] or "")
    try:
        if not mask.name.endswith(IMAGE_SUFFIX):
            raise UnusableInputError(f"{model} makes no mask, which a DICOM SEG holds; ask for output=all")
        facts = SegmentationFacts(author=signer(params), description=model, model=model, algorithm="AUTOMATIC")
        ds = app.datastore().dicom_seg(image, mask, facts, result["params"]["label_names"])
    finally:
        mask.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(prefix="medseg-", suffix=".dcm")
    os.close(handle)
    write_dicom(Path(name), ds)
    removal = BackgroundTask(Path(name).unlink, missing_ok=True)
    return FileResponse(name, media_type="application/dicom", filename=f"{model}-{image}.dcm", background=removal)
