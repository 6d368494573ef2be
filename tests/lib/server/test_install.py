from __future__ import annotations

from types import SimpleNamespace

import jwt
import pytest
from monailabel.endpoints.user import auth

from medseg.server.install import accept_signed_tokens, allow_remote


@pytest.mark.parametrize(
    ("setting", "argv", "allowed"),
    [
        (None, ["start_server"], False),
        (None, ["start_server", "--host", "0.0.0.0"], True),
        (None, ["start_server", "-i", "10.0.0.7"], True),
        (None, ["start_server", "--host=gpu-server"], True),
        (None, ["start_server", "--host", "127.0.0.1"], False),
        (None, ["start_server", "--host"], False),
        (True, ["start_server"], True),
        (False, ["start_server", "--host", "0.0.0.0"], False),
    ],
)
def test_other_machines_are_answered_when_somebody_chose_so(
    setting: bool | None, argv: list[str], allowed: bool
) -> None:
    assert allow_remote(setting, argv) is allowed


def test_tokens_are_decoded_with_a_named_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, object]] = []
    fake = SimpleNamespace(decode=lambda token, key, **options: calls.append(options))
    monkeypatch.setattr(auth, "jwt", fake)

    accept_signed_tokens()
    accept_signed_tokens()
    auth.jwt.decode("token", "key", options={"verify_exp": True})

    assert calls == [{"algorithms": ["RS256"], "options": {"verify_exp": True}}]
    assert hasattr(jwt, "decode")
