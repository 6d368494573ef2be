"""Seconds per training step: ours, and a reference that keeps bank and correlation in host memory.

The reference follows the CAML card sec. 4 and 7.6: all voxels that both branches get right are kept on the host, one
slot per labelled scan; each step concatenates all slots; every unlabelled voxel on which the branches agree passes the
heads; the most confident 12,800 per class are compared on the host. Branches, precision and the other losses are ours
in both arms, so that the difference is the bank and the correlation alone. The networks are untrained and get few
voxels right; so that this does not shrink the reference, its slots keep the length they have with trained ones.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from medseg.methods import method_class
from medseg.methods.base import Batch, StepOutput
from medseg.methods.caml.config import CAMLConfig
from medseg.networks.measure import forget_peak, peak_mb, wait
from medseg.networks.precision import autocast
from medseg.networks.vnet import prefer_channels_last

PATCHES = {"cuda": (112, 112, 80), "cpu": (56, 56, 40)}  # CAML card sec. 5; half of it where no GPU is at hand
STEPS = {"cuda": (5, 30), "cpu": (1, 5)}  # warm-up and at most so many measured steps
LABELLED_SCANS = 8  # CAML card sec. 2: the middle of 4, 8 and 16
ROWS_PER_CLASS = 12_800  # CAML card sec. 4
RIGHT = 0.95  # ours: share of a labelled crop's voxels that both branches get right once they are trained
METRIC = "seconds_per_step"


class TimingContext(Protocol):
    """What the benchmark hands to an arm that is not a training."""

    config: CAMLConfig
    labels: dict[str, int]
    device: Any
    seed: int
    iterations: int
    out: Path


Step = Callable[[Batch, int], StepOutput]


def time_ours(context: TimingContext) -> dict[str, Any]:
    """Seconds per training step as it is trained."""
    method = _method(context)
    return _measure(context, method, method.training_step)


def time_host_bank(context: TimingContext) -> dict[str, Any]:
    """Seconds per training step of the reference."""
    method = _method(context)
    voxels = round(RIGHT * torch.Size(method.config.patch).numel())
    bank = HostBank(LABELLED_SCANS, voxels, method.config.occ_dim, method.classes)

    def step(batch: Batch, iteration: int) -> StepOutput:
        image = torch.cat([batch["labelled"]["image"], batch["unlabelled"]["image"]])
        label = batch["labelled"]["label"]
        outputs = method.network(image)  # without labels: no correlation on the device
        logits_v, logits_a = outputs["logits_v"], outputs["logits_a"]
        n = label.shape[0]
        terms = {
            "supervised": method.segmentation(logits_v[:n], label) + method.segmentation(logits_a[:n], label),
            "mutual": method.consistency(logits_v, logits_a),
            "correlation": host_correlation(method.network.correlator, outputs, label, batch["labelled"]["slot"], bank),
        }
        weights = method.weights(iteration)
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return StepOutput(loss, {name: term.detach() for name, term in terms.items()})

    return _measure(context, method, step)


class HostBank:
    """Voxels that both branches got right, per labelled scan, in host memory.

    Args:
        cases: slots.
        voxels: length of every slot. It starts full and stays so: what is timed does not depend on how much an
            untrained network gets right.
        dim: length of an embedding.
        classes: classes, background included.
    """

    def __init__(self, cases: int, voxels: int, dim: int, classes: int) -> None:
        self.features = [torch.randn(voxels, dim) for _ in range(cases)]
        self.classes = [torch.randint(classes, (voxels,)) for _ in range(cases)]

    def write(self, slot: int, features: torch.Tensor, classes: torch.Tensor) -> None:
        """Overwrite as much of a slot as (N, D) features and their (N,) classes fill."""
        count = min(len(features), len(self.features[slot]))
        self.features[slot][:count] = features[:count].float().cpu()
        self.classes[slot][:count] = classes[:count].cpu()

    def draw(self, per_class: int) -> torch.Tensor:
        """`per_class` random features of each class that has so many, (M, D)."""
        features, classes = torch.cat(self.features), torch.cat(self.classes)
        chosen = []
        for k in range(int(classes.max()) + 1):
            candidates = torch.nonzero(classes == k)[:, 0]
            if len(candidates) >= per_class:
                chosen.append(features[candidates[torch.randperm(len(candidates))[:per_class]]])
        return torch.cat(chosen) if chosen else features[:0]


def host_correlation(
    heads: Any, outputs: dict[str, torch.Tensor], label: torch.Tensor, slots: torch.Tensor, bank: HostBank
) -> torch.Tensor:
    """Correlation consistency on the host, in the form of the card: dot products, log(p + 1e-8), A as V's target."""
    guess_v, guess_a = outputs["logits_v"].argmax(dim=1), outputs["logits_a"].argmax(dim=1)
    maps = {b: outputs[f"embedding_{b}"].movedim(1, -1) for b in "va"}  # (B, *grid, F)
    with torch.no_grad():
        for i, slot in enumerate(slots.tolist()):
            right = (guess_v[i] == label[i, 0]) & (guess_a[i] == label[i, 0])
            features = 0.5 * (heads.project_v(maps["v"][i][right]) + heads.project_a(maps["a"][i][right]))
            bank.write(slot, features, label[i, 0][right])
    memory = bank.draw(256)
    n = label.shape[0]
    agree = guess_v[n:] == guess_a[n:]
    rows_v = heads.predict_v(heads.project_v(maps["v"][n:][agree]))
    rows_a = heads.predict_a(heads.project_a(maps["a"][n:][agree]))
    confidence = torch.softmax(outputs["logits_v"][n:].float(), dim=1).amax(dim=1)[agree]
    chosen = _most_confident(confidence, guess_v[n:][agree], outputs["logits_v"].shape[1])
    if len(memory) == 0 or len(chosen) == 0:
        return rows_v.new_zeros((), dtype=torch.float32)
    r_v = torch.softmax(rows_v[chosen].float().cpu() @ memory.T / 0.1, dim=1)
    r_a = torch.softmax(rows_a[chosen].float().cpu() @ memory.T / 0.1, dim=1)
    return -(r_a * torch.log(r_v + 1e-8)).sum(dim=1).mean().to(rows_v.device)


def _most_confident(confidence: torch.Tensor, classes: torch.Tensor, count: int) -> torch.Tensor:
    picks = []
    for k in range(count):
        members = torch.nonzero(classes == k)[:, 0]
        best = confidence[members].topk(min(ROWS_PER_CLASS, len(members))).indices
        picks.append(members[best])
    return torch.cat(picks)


def _method(context: TimingContext) -> Any:
    """The method at the card's width, loss, patch and batch, whatever the preset, on the context's device."""
    device = torch.device(context.device)
    form = {"dimension": 3, "channels": 1, "patch": PATCHES[device.type], "width": 16, "loss": "dice"}
    config = context.config.with_overrides({**form, "bank_cases": LABELLED_SCANS, "occ": True})
    torch.manual_seed(context.seed)
    method = method_class("caml")(config, context.labels)
    method.network.to(device).train()
    prefer_channels_last(method.network)  # as in a training
    return method


def _batch(config: CAMLConfig, device: torch.device, number: int) -> Batch:
    """Noise with a bright box, which is the label; every step has another one."""
    size = (1, *config.patch)
    window = (slice(None), slice(None), *(slice(p // 4, p // 4 + p // 2) for p in config.patch))
    label = torch.zeros(config.labelled_batch, *size, dtype=torch.uint8)
    label[window] = 1
    labelled = {"image": torch.randn(config.labelled_batch, *size) + label, "label": label}
    slots = torch.arange(config.labelled_batch) + number * config.labelled_batch
    labelled["slot"] = slots % LABELLED_SCANS
    batch = {"labelled": labelled, "unlabelled": {"image": torch.randn(config.unlabelled_batch, *size)}}
    return {name: {key: value.to(device) for key, value in stream.items()} for name, stream in batch.items()}


def _measure(context: TimingContext, method: Any, step: Step) -> dict[str, Any]:
    """Time forward, backward and optimiser of every step."""
    device = torch.device(context.device)
    warm_up, most = STEPS[device.type]
    optimizer = method.optimizer()
    forget_peak(device)
    seconds: list[float] = []
    for number in range(warm_up + max(1, min(most, context.iterations))):
        batch = _batch(method.config, device, number)
        wait(device)
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with autocast(method.config.amp, device):
            loss = step(batch, method.config.iterations).loss
        loss.backward()
        optimizer.step()
        wait(device)
        seconds.append(time.perf_counter() - began)
    measured = seconds[warm_up:]
    return {
        "mean": statistics.fmean(measured),
        "sd": statistics.stdev(measured) if len(measured) > 1 else 0.0,
        "cases": {f"step_{i + 1}": {METRIC: value} for i, value in enumerate(measured)},
        "iterations": len(measured),
        "seconds": sum(seconds),
        "peak_memory_mb": peak_mb(device),
    }
