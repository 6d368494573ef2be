"""Names that come over the network and become file names: image ids, label tags, file suffixes.

The datastore and the HTTP guard both check here, so that no request can name a file outside the studies folder.
"""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

from medseg.cases import IMAGE_SUFFIXES
from medseg.errors import MedsegError, UnusableInputError

MAX_LENGTH = 200  # ours: file systems allow 255 bytes, and suffixes and temporary names need some of them
MASK_SUFFIXES = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".tif", ".tiff")
LABEL_SUFFIXES = (*MASK_SUFFIXES, ".json")

_ALLOWED = re.compile(r"[A-Za-z0-9._-]+")


def check_image_id(value: object) -> str:
    """The image id as text.

    Raises:
        MedsegError: it is not a plain name.
    """
    return _check_name(value, "image id")


def check_tag(value: object) -> str:
    """The label tag as text; members of a string enumeration (`DefaultLabelTag.FINAL`) give their value.

    Raises:
        MedsegError: it is not a plain name.
    """
    return _check_name(value, "label tag")


def is_name(value: str) -> bool:
    """Whether `value` may be an image id or a tag."""
    return (
        _ALLOWED.fullmatch(value) is not None
        and not value.startswith(".")
        and ".." not in value
        and len(value) <= MAX_LENGTH
    )


def check_image_suffix(name: str | Path) -> str:
    """The image suffix of a file name, in lower case.

    Raises:
        UnusableInputError: none of `IMAGE_SUFFIXES`.
    """
    return _check_suffix(name, IMAGE_SUFFIXES, "image")


def check_label_suffix(name: str | Path, allowed: tuple[str, ...] = LABEL_SUFFIXES) -> str:
    """The label suffix of a file name, in lower case; the longest that fits (`.seg.nrrd` before `.nrrd`).

    Raises:
        UnusableInputError: none of `allowed`.
    """
    return _check_suffix(name, allowed, "label")


def _check_name(value: object, what: str) -> str:
    text = value.value if isinstance(value, Enum) else value
    if not isinstance(text, str) or not is_name(text):
        raise MedsegError(
            f"{what} {str(text)[:80]!r} is not allowed; use letters, digits, '.', '_' and '-', "
            f"at most {MAX_LENGTH} of them, without a leading '.' and without '..'"
        )
    return text


def _check_suffix(name: str | Path, allowed: tuple[str, ...], what: str) -> str:
    lower = Path(name).name.lower()
    fitting = [suffix for suffix in allowed if lower.endswith(suffix)]
    if not fitting:
        raise UnusableInputError(f"{what} file {Path(name).name[-80:]!r} has no known suffix; use {', '.join(allowed)}")
    return max(fitting, key=len)
