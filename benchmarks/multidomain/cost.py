"""What a domain costs: parameters of its norms and head over those of the network, for each network.

python benchmarks/multidomain/cost.py
"""

from __future__ import annotations

from medseg.methods.multidomain.config import MultiDomainConfig
from medseg.methods.multidomain.network import MultiDomainNet, build_backbone
from medseg.networks.domain_norm import DomainNorm, added_parameters, slot_key

CHOICES = (
    {"network": "unet", "width": 16},
    {"network": "unet", "width": 32},
    {"network": "unet", "width": 32, "view": "3d", "patch": (96, 96, 32)},
    {"network": "attention", "width": 32},
    {"network": "flexible", "efficientnet": "efficientnet-b0"},
    {"network": "flexible", "efficientnet": "efficientnet-b3"},
)


def main() -> None:
    """Print a Markdown table."""
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


if __name__ == "__main__":
    main()
