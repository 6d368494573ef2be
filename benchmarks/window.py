"""Seconds and peak memory of sliding-window inference of one full volume.

python benchmarks/window.py --image la_000.nii.gz --device cpu
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from medseg.cases import Case
from medseg.inference.predictor import Predictor
from medseg.methods import method_class
from medseg.networks.measure import peak_mb
from medseg.training.device import pick_device


def main() -> None:
    """Time the paper's V-Net, randomly initialised: neither time nor memory depends on the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--device", default=None)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    kind = method_class("caml")
    case = Case("volume", arguments.image)
    config = kind.config_class.from_dict(dict(kind.presets[arguments.preset].config))
    method = kind(kind.fit_config(config, [case]), {"organ": 1})
    device = pick_device(arguments.device)
    predictor = Predictor(method, str(device))
    seconds = []
    for _ in range(arguments.repeats):
        started = time.perf_counter()
        prediction = predictor.predict(case)
        seconds.append(round(time.perf_counter() - started, 2))
    assert prediction.mask is not None
    result = {
        "voxels": list(prediction.mask.shape[1:]),
        "patch": list(method.config.patch),
        "overlap": method.config.overlap,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} cores",
        "seconds": seconds,
        "peak_memory_mb": round(peak_mb(device)),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
