from __future__ import annotations

import os
from pathlib import Path

import pytest

from medseg.training.device import usable_cores


@pytest.mark.parametrize(("limit", "expected"), [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("", 8)])
def test_a_container_s_share_limits_the_cores(monkeypatch: pytest.MonkeyPatch, limit: str, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(Path, "read_text", lambda _: limit)

    assert usable_cores() == expected
