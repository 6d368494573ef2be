from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelError, MONAILabelException
from starlette.exceptions import HTTPException

from medseg.errors import ConflictError, MedsegError, NotFoundError, UnusableInputError
from medseg.server.http_errors import ErrorAnswers, parse_object, sentence_of


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (MedsegError("a"), 400, "a"),
        (NotFoundError("b"), 404, "b"),
        (ConflictError("c"), 409, "c"),
        (UnusableInputError("d"), 422, "d"),
        (HTTPException(429, "busy"), 429, "busy"),
        (ImageNotFoundException("Image x not found"), 404, "Image x not found"),
        (MONAILabelException(MONAILabelError.INVALID_INPUT, "no"), 400, "no"),
        (MemoryError(), 503, "the server is out of memory"),
    ],
)
def test_status_and_sentence(error: Exception, status: int, sentence: str) -> None:
    assert sentence_of(error)[0] == status
    assert sentence_of(error)[1].startswith(sentence)


def test_unexpected_errors_tell_neither_text_nor_path() -> None:
    status, sentence = sentence_of(RuntimeError("/secret/path exploded"))

    assert status == 500
    assert "RuntimeError" in sentence
    assert "secret" not in sentence


def test_validation_errors_become_one_sentence() -> None:
    error = RequestValidationError([{"loc": ("body", "version"), "msg": "Field required", "type": "missing"}])

    assert sentence_of(error) == (400, "version: Field required")


def test_answers_hide_folders() -> None:
    answers = ErrorAnswers({"/data/my study": "this study", "/data/my study/models/": "the model folder"})

    assert answers.without_paths("image 'x' is not in /data/my study") == "image 'x' is not in this study"
    assert answers.without_paths("/data/my study/a.nii is damaged") == "a.nii is damaged"
    assert answers.without_paths("no /data/my study/models") == "no the model folder"


def test_answer_is_json() -> None:
    class Request:
        method = "GET"

        class url:
            path = "/x"

    request: Any = Request()
    reply = asyncio.run(ErrorAnswers({})(request, NotFoundError("there is no image 'x'")))

    assert (reply.status_code, json.loads(bytes(reply.body))) == (404, {"detail": "there is no image 'x'"})


@pytest.mark.parametrize("text", ["{bad", "[1]", "3", '"x"'])
def test_parse_object_refuses_what_is_no_object(text: str) -> None:
    with pytest.raises(MedsegError, match="params is"):
        parse_object(text, "params")


def test_parse_object_reads_objects_and_nothing() -> None:
    assert parse_object('{"a": 1}', "params") == {"a": 1}
    assert parse_object("", "params") == parse_object(None, "params") == {}
    assert parse_object({"a": 1}, "params") == {"a": 1}
