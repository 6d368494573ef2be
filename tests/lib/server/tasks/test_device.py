from __future__ import annotations

import pytest
import torch

from medseg.errors import MedsegError
from medseg.server.tasks.device import device_choices, resolve_device


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H200")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("asked", [None, "", [], "cuda", ["cuda", "cpu"], "cuda:1", "cpu", ["cpu"]])
def test_without_a_gpu_everything_is_the_cpu(asked: object) -> None:
    assert resolve_device(asked) == "cpu"


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("asked", "expected"),
    [(None, "cuda"), ("cuda:1", "cuda:1"), ("cuda:7", "cuda"), ("cpu", "cpu"), ("NVIDIA H200:1", "cuda")],
)
def test_with_gpus(asked: object, expected: str) -> None:
    assert resolve_device(asked) == expected


@pytest.mark.usefixtures("two_gpus")
def test_the_configured_device_is_the_default_and_offered_first() -> None:
    assert resolve_device(None, "cpu") == "cpu"
    assert device_choices("cuda:1") == ["cuda:1", "cuda", "cpu"]


@pytest.mark.parametrize("asked", ["tpu", "meta", "../x"])
def test_unknown_devices_are_named(asked: str) -> None:
    with pytest.raises(MedsegError, match="there is no device"):
        resolve_device(asked)
