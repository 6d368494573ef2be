"""What a domain costs: parameters of its norms and head over those of the network, and time, by number of domains.

python benchmarks/multidomain/cost.py

Times are of the process on one core (other programs of the machine do not count), on random images of the size that the
preset `cpu` makes of the vertebrae.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from monai.data import MetaTensor

from medseg.domains import Domain
from medseg.methods.multidomain.config import MultiDomainConfig
from medseg.methods.multidomain.method import MultiDomain
from medseg.methods.multidomain.network import MultiDomainNet, build_backbone
from medseg.methods.multidomain.presets import PRESETS
from medseg.methods.multidomain.views import COUNT, SIDE
from medseg.networks.domain_norm import DomainNorm, added_parameters, slot_key

CHOICES = (
    {"network": "unet", "width": 16},
    {"network": "unet", "width": 32},
    {"network": "unet", "width": 32, "view": "3d", "patch": (96, 96, 32)},
    {"network": "attention", "width": 32},
    {"network": "flexible", "efficientnet": "efficientnet-b0"},
    {"network": "flexible", "efficientnet": "efficientnet-b3"},
)
STEPS = 5
SLICES = 16


def main() -> None:
    """Print two Markdown tables."""
    print("| network | shared parameters | norms | added per domain | of the shared | head of 4 classes |")
    print("|---|---|---|---|---|---|")
    for choice in CHOICES:
        settings = {**choice, "dimension": 3, "channels": 1, "domains": {name: {} for name in "abc"}}
        config = MultiDomainConfig.from_dict(settings)
        backbone, features, taps = build_backbone(config)
        network = MultiDomainNet(backbone, features, dict.fromkeys("abc", 4), taps, config)
        shared = sum(p.numel() for p in network.shared_parameters())
        norms = sum(isinstance(module, DomainNorm) for module in network.backbone.modules())
        added = added_parameters(network.backbone, "a")
        head = sum(p.numel() for p in network.heads[slot_key("a")].parameters())
        name = " ".join(str(value) for key, value in choice.items() if key != "patch")
        print(f"| {name} | {shared:,} | {norms} | {added:,} | {100 * added / shared:.2f} % | {head} |")
    torch.set_num_threads(1)
    print("\n| domains | ms per step | ms per predicted case |\n|---|---|---|")
    for count in range(1, 5):
        step, case = times(count)
        print(f"| {count} | {step:.0f} | {case:.0f} |")


def times(count: int) -> tuple[float, float]:
    """Milliseconds of a training step of so many domains, and of a predicted case."""
    names = "abcd"[:count]
    domains = {name: Domain(name, (name,)).to_dict() for name in names}
    settings = {**PRESETS["cpu"].config, "dimension": 3, "channels": 1, "amp": "off", "domains": domains}
    config = MultiDomainConfig.from_dict(settings)
    method = MultiDomain(config, {name: number for number, name in enumerate(names, start=1)})
    size = (config.domain_batch, 1, *config.patch)
    batch = {
        name: {"image": torch.randn(size), "label": torch.randint(2, size) * (number + 1),
               "view": torch.randn(config.domain_batch, 1, SIDE, SIDE),
               "domain": torch.full((config.domain_batch,), number)}
        for number, name in enumerate(names)
    }  # fmt: skip
    optimizer = method.optimizer()
    loaded = {"image": MetaTensor(torch.randn(1, *config.patch, SLICES)), "views": torch.randn(COUNT, 1, SIDE, SIDE),
              "domain": "a", "source": "request", "confidence": 1.0, "distance": 0.0}  # fmt: skip

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        method.training_step(batch, 0).loss.backward()
        optimizer.step()

    def predict() -> None:
        with torch.no_grad():
            method.predict(loaded)

    method.network.train()
    taken = milliseconds(step)
    method.network.eval()
    return taken, milliseconds(predict)


def milliseconds(function: Callable[[], None]) -> float:
    """Median time of the process over some calls, after one that does not count."""
    function()
    found = []
    for _ in range(STEPS):
        began = time.process_time()
        function()
        found.append(1000 * (time.process_time() - began))
    return statistics.median(found)


if __name__ == "__main__":
    main()
