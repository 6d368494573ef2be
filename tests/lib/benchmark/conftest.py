"""The tiny method in the table of methods, and 2D and 3D phantoms for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_method import Tiny

from medseg import methods
from medseg.benchmark.request import BenchmarkRequest
from medseg.phantoms.study import StudyOptions, write_dataset


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> type[Tiny]:
    """The tiny method, in the table of methods."""
    monkeypatch.setitem(methods.METHODS, "tiny", "tiny_method:Tiny")
    monkeypatch.setattr(Tiny, "seen", [])
    return Tiny


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight 2D phantoms, all with masks."""
    options = StudyOptions(shape=(24, 20), spacings=((1.0, 1.0),), tilt=0.0, prefix="s")
    return write_dataset(tmp_path_factory.mktemp("pictures"), 8, options=options)


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six oblique 3D phantoms with two labels, five of them with masks."""
    options = StudyOptions(shape=(20, 18, 12), labels=2, prefix="v")
    return write_dataset(tmp_path_factory.mktemp("volumes"), 6, labelled=5, options=options)


@pytest.fixture
def request_for(tiny: type[Tiny], tmp_path: Path) -> Callable[..., BenchmarkRequest]:
    """Build a request for the tiny method, in this process."""

    def build(data: Path, **changes: Any) -> BenchmarkRequest:
        settings: dict[str, Any] = {"device": "cpu", "isolate": False, **changes}
        return BenchmarkRequest("tiny", (data,), tmp_path / "out", **settings)

    return build
