"""Every error of the server as JSON {"detail": one sentence} with the right status; the stack goes to the log."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from monailabel.interfaces.exception import MONAILabelException
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from medseg.errors import MedsegError

logger = logging.getLogger(__name__)


def sentence_of(error: Exception) -> tuple[int, str]:
    """HTTP status and sentence of an error. Only errors made for people tell their text; others may hold paths."""
    if isinstance(error, MedsegError):
        return error.status, str(error)
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail)
    if isinstance(error, RequestValidationError):
        return 400, _first_mistake(error)
    if isinstance(error, MONAILabelException):
        return (404 if "not found" in error.msg.lower() else 400), error.msg
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return 503, "the server is out of memory; wait for running jobs to end, or use a smaller image"
    return 500, f"the server failed with {type(error).__name__}; its log says where"


class ErrorAnswers:
    """Exception handler for Starlette.

    Args:
        hidden: folders of this machine, which the answers name without their place.
    """

    def __init__(self, hidden: Mapping[str, str]) -> None:
        self._hidden = sorted(((path.rstrip("/"), name) for path, name in hidden.items()), key=lambda x: -len(x[0]))

    async def __call__(self, request: Request, error: Exception) -> JSONResponse:
        """The answer to an error."""
        status, sentence = sentence_of(error)
        if status >= 500:
            logger.error("%s %s: %s", request.method, request.url.path, sentence, exc_info=error)
        else:
            logger.info("%s %s answered %d: %s", request.method, request.url.path, status, sentence)
        headers = getattr(error, "headers", None)
        return JSONResponse({"detail": self.without_paths(sentence)}, status_code=status, headers=headers)

    def without_paths(self, sentence: str) -> str:
        """The sentence with files named as within the hidden folders."""
        for path, name in self._hidden:
            sentence = sentence.replace(f"{path}/", "").replace(path, name)
        return sentence


def install_errors(app: Any, hidden: Mapping[str, str]) -> None:
    """Answer all errors of a FastAPI application by `ErrorAnswers`."""
    answers = ErrorAnswers(hidden)
    for kind in (MedsegError, HTTPException, RequestValidationError, MONAILabelException, Exception):
        app.add_exception_handler(kind, answers)


def parse_object(text: Any, name: str) -> dict[str, Any]:
    """A JSON object from a form field; empty text is {}.

    Raises:
        MedsegError: not JSON, or no object.
    """
    if isinstance(text, dict):
        return text
    try:
        value = json.loads(text) if text else {}
    except (TypeError, ValueError) as error:
        raise MedsegError(f'{name} is not JSON: {error}; send an object such as {{"key": 1}}') from error
    if not isinstance(value, dict):
        raise MedsegError(f'{name} is JSON but no object; send an object such as {{"key": 1}}')
    return value


def _first_mistake(error: RequestValidationError) -> str:
    mistakes = error.errors()
    if not mistakes:
        return "the request is malformed"
    first = mistakes[0]
    where = ".".join(str(part) for part in first.get("loc", ()) if part != "body") or "the body"
    if first.get("type") == "json_invalid":
        return f"the body is not JSON: {first.get('ctx', {}).get('error', 'malformed')}"
    return f"{where}: {first.get('msg', 'is wrong')}"
