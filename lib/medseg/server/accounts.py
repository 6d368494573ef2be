"""Accounts, where MONAI Label's authentication is on: who may save by an infer request, and who the author is.

MONAI Label checks one role per endpoint and takes the author from `client_id`, which any client may choose.
"""

from __future__ import annotations

import json
from typing import Any

from monailabel.config import settings as monai_settings
from starlette.exceptions import HTTPException

from medseg.server.http_errors import parse_object

NO = ("", "none", "false", "0", "no", "off")
"""Values of `save_label` that ask for nothing."""


def author_of(user: Any, client_id: str) -> str:
    """The name kept with a change: the login where there are accounts, else what the client calls itself."""
    return str(user.username) if monai_settings.MONAI_LABEL_AUTH_ENABLE else client_id


def check_account(kind: str, arguments: dict[str, Any]) -> None:
    """Check the role of a call that saves, and write the login over the `client_id` of whatever is saved.

    Args:
        kind: MONAI Label's module of the endpoint.
        arguments: the parsed arguments of the call; `params` and `info` are changed.

    Raises:
        HTTPException: 403, the user is no annotator.
    """
    user = arguments.get("user")
    if not monai_settings.MONAI_LABEL_AUTH_ENABLE or user is None:
        return
    role = monai_settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR
    if kind == "infer" and _saves(arguments) and role not in user.roles:
        raise HTTPException(403, f"save_label needs the role {role}; leave it out, or log in as an annotator")
    if kind not in ("infer", "datastore"):
        return
    for key in ("params", "info"):
        if key in arguments:
            signed = {**parse_object(arguments[key], key), "client_id": user.username}
            arguments[key] = json.dumps(signed)


def _saves(arguments: dict[str, Any]) -> bool:
    value = parse_object(arguments.get("params"), "params").get("save_label")
    return str(value).strip().lower() not in NO
