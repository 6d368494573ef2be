from __future__ import annotations

import json
from typing import Any

import pytest
from monailabel.config import settings as monai_settings
from monailabel.endpoints.user.auth import User
from starlette.exceptions import HTTPException

from medseg.server.accounts import author_of, check_account

READER = User(username="rita", roles=["monailabel-user"])
ANNOTATOR = User(username="ann", roles=["monailabel-user", "monailabel-annotator"])


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monai_settings, "MONAI_LABEL_AUTH_ENABLE", True)


@pytest.mark.usefixtures("accounts")
@pytest.mark.parametrize("value", [True, "true", "yes", 1, ["true"]])
def test_saving_by_infer_needs_an_annotator(value: Any) -> None:
    asked = {"params": json.dumps({"save_label": value})}

    with pytest.raises(HTTPException, match="needs the role monailabel-annotator") as refused:
        check_account("infer", {**asked, "user": READER})

    assert refused.value.status_code == 403
    check_account("infer", {**asked, "user": ANNOTATOR})


@pytest.mark.usefixtures("accounts")
@pytest.mark.parametrize("params", ["{}", '{"save_label": false}', '{"save_label": "no"}'])
def test_readers_may_infer(params: str) -> None:
    check_account("infer", {"params": params, "user": READER})


@pytest.mark.usefixtures("accounts")
def test_the_login_is_the_author_whatever_the_client_says() -> None:
    label = {"params": '{"client_id": "the boss", "label_info": []}', "user": ANNOTATOR}
    info = {"info": "{}", "user": ANNOTATOR}
    check_account("datastore", label)
    check_account("datastore", info)

    assert json.loads(label["params"]) == {"client_id": "ann", "label_info": []}  # type: ignore[arg-type]
    assert json.loads(info["info"]) == {"client_id": "ann"}  # type: ignore[arg-type]
    assert author_of(ANNOTATOR, "the boss") == "ann"


def test_without_accounts_the_client_names_itself() -> None:
    arguments = {"params": '{"client_id": "me", "save_label": true}', "user": READER}
    check_account("infer", arguments)

    assert arguments["params"] == '{"client_id": "me", "save_label": true}'
    assert author_of(READER, "me") == "me"
