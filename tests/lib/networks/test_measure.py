from __future__ import annotations

import torch

from medseg.networks.measure import forget_peak, peak_mb


def test_peak_of_the_process_follows_what_it_holds_and_is_forgotten() -> None:
    device = torch.device("cpu")
    forget_peak(device)
    before = peak_mb(device)
    held = torch.ones(64, 2**20)  # 256 MB
    assert peak_mb(device) - before > 200
    del held
    forget_peak(device)
    assert peak_mb(device) - before < 200
