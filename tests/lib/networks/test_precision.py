from __future__ import annotations

import pytest
import torch

from medseg.errors import MedsegError
from medseg.networks.precision import amp_dtype, autocast

CPU = torch.device("cpu")


@pytest.mark.parametrize(("mode", "dtype"), [("off", None), ("bf16", torch.bfloat16)])
def test_named_modes(mode: str, dtype: torch.dtype | None) -> None:
    assert amp_dtype(mode, CPU) is dtype


@pytest.mark.parametrize("amx", [True, False])
def test_auto_follows_the_hardware(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)

    assert amp_dtype("auto", CPU) is (torch.bfloat16 if amx else None)


def test_autocast_changes_the_dtype_of_products_only_where_it_is_on() -> None:
    a = torch.ones(2, 2)

    with autocast("bf16", CPU):
        assert (a @ a).dtype is torch.bfloat16
    with autocast("off", CPU):
        assert (a @ a).dtype is torch.float32


def test_wrong_modes_are_one_sentence() -> None:
    with pytest.raises(MedsegError, match="amp = 'half' is unknown; choose one of auto, off, bf16, fp16"):
        amp_dtype("half", CPU)
    with pytest.raises(MedsegError, match="amp = 'fp16' needs a GPU"):
        amp_dtype("fp16", CPU)
