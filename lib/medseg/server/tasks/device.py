"""Which device a task runs on."""

from __future__ import annotations

from typing import Any

import torch

from medseg.errors import MedsegError


def resolve_device(asked: Any, default: str | None = None) -> str:
    """The torch device for a request.

    Clients send what `/info/` offered: a name, or the whole drop-down list. A GPU that is not there becomes the CPU, as
    in MONAI Label, because viewers send "cuda" without looking.

    Args:
        asked: the request's `device`: None, text or a list of texts.
        default: `--conf device`.

    Raises:
        MedsegError: no device name at all.
    """
    if isinstance(asked, list | tuple):
        asked = asked[0] if asked else None
    name = str(asked or default or "cuda").strip()
    try:
        device = torch.device(name)
    except RuntimeError:
        return resolve_device(None, default) if _is_gpu_name(name) else _unknown(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name if device.type in ("cpu", "cuda") else _unknown(name)


def device_choices(default: str | None = None) -> list[str]:
    """Names offered to viewers, the default first."""
    found = [f"cuda:{index}" if index else "cuda" for index in range(torch.cuda.device_count())]
    return list(dict.fromkeys([resolve_device(None, default), *found, "cpu"]))


def _is_gpu_name(name: str) -> bool:
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return any(name.startswith(known) for known in names)


def _unknown(name: str) -> str:
    raise MedsegError(f"there is no device {name!r}; known: {', '.join(device_choices())}")
