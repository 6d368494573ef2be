"""What omni-correlation compares: voxels of both branches, chosen before their heads, and a memory of labelled ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from medseg.methods.caml.bank import VoxelBank
from medseg.methods.caml.sampling import sample_groups


@dataclass(frozen=True)
class CorrelationSettings:
    """Sizes of the comparison.

    Attributes:
        dim: length D of a projected embedding.
        cases: slots of the bank.
        capacity: bank entries per case and class.
        memory: bank entries drawn per class and step.
        minimum: bank entries a class needs to take part.
        rows: voxels compared per class and step.
        bins: confidence intervals among which the rows of a class are shared out.
        anchors: labelled voxels per class and step that are returned to be tied to their class; 0: none.
    """

    dim: int = 32  # CAML card sec. 3: the effective width of the released heads
    cases: int = 16
    capacity: int = 256  # ours: one full crop can serve a whole draw
    memory: int = 256  # CAML card sec. 4
    minimum: int = 32  # ours: CAML drops classes with fewer than 256, which silences small organs
    rows: int = 2048  # ours: CAML takes the 12,800 most confident of each class; see `Correlator`
    bins: int = 4  # ours: the boundary, where confidence is low, takes part
    anchors: int = 0  # ours, beyond the paper


class Correlator(nn.Module):
    """Heads of both branches, the voxel bank, and the choice of voxels.

    Source: CAML card sec. 4. Deviations: voxels are drawn before the heads and evenly over confidence intervals
    (released code: all voxels pass the heads, then the most confident ones stay, so boundaries never take part);
    LayerNorm instead of BatchNorm in the heads, which works for any number of rows and is the same in train and eval.

    Args:
        features: channels F of the branches' embeddings.
        classes: classes, background included.
        settings: sizes.
    """

    def __init__(self, features: int, classes: int, settings: CorrelationSettings) -> None:
        super().__init__()
        self.settings = settings
        self.classes = classes
        dim = settings.dim
        self.project_v, self.project_a = mlp(features, dim), mlp(features, dim)
        self.predict_v, self.predict_a = mlp(dim, dim), mlp(dim, dim)
        self.bank = VoxelBank(settings.cases, classes, settings.capacity, dim)

    def forward(
        self, outputs: dict[str, torch.Tensor], label: torch.Tensor, slots: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """One step: remember labelled voxels, choose voxels to compare, draw the memory.

        Args:
            outputs: `logits_v`, `logits_a` (B, classes, *grid), `embedding_v`, `embedding_a` (B, F, *grid).
            label: (L, 1, *grid) truth of the first L of the B images.
            slots: (L,) their slots in the bank.

        Returns:
            `rows_v`, `rows_a` (R, D), `row_mask` (R,), `memory` (M, D), `memory_mask` (M,); with anchors also
            `anchors_v`, `anchors_a` (classes, anchors, D) and `anchor_mask` (classes, anchors). R and M are ordered by
            class.
        """
        guess_v, guess_a = outputs["logits_v"].argmax(dim=1), outputs["logits_a"].argmax(dim=1)
        agree = guess_v == guess_a
        labelled = label.shape[0]
        right = agree[:labelled] & (guess_v[:labelled] == label[:, 0])
        self._remember(outputs, torch.where(right, label[:, 0].long(), -1), slots)
        memory, memory_mask = self.bank.draw(self.settings.memory, self.settings.minimum)
        first = labelled if agree.shape[0] > labelled else 0  # without unlabelled images, the labelled ones
        guess = torch.where(agree, guess_v, -1)
        index, row_mask = self._choose(guess[first:], outputs["logits_v"][first:])
        row_mask = row_mask & memory_mask.any(dim=1)[:, None]  # a class that is not in the memory has no rows
        rows = {f"rows_{b}": self._rows(outputs[f"embedding_{b}"][first:], index.flatten(), b) for b in "va"}
        return {
            **rows,
            **self._anchors(outputs, label),
            "row_mask": row_mask.flatten(),
            "memory": memory.flatten(0, 1),
            "memory_mask": memory_mask.flatten(),
        }

    @torch.no_grad()
    def _remember(self, outputs: dict[str, torch.Tensor], classes: torch.Tensor, slots: torch.Tensor) -> None:
        """Write voxels that both branches get right, (L, *grid) true class or -1, to the bank."""
        images = classes.shape[0]
        image = torch.arange(images, device=classes.device).view(-1, *[1] * (classes.ndim - 1))
        group = torch.where(classes >= 0, image * self.classes + classes, -1).flatten()
        index, mask = sample_groups(group, images * self.classes, self.settings.capacity)
        both = [
            project(gather_voxels(outputs[name], index.flatten())).float()
            for project, name in ((self.project_v, "embedding_v"), (self.project_a, "embedding_a"))
        ]
        mean = 0.5 * (both[0] + both[1])
        shape = (images, self.classes, self.settings.capacity)
        self.bank.write(slots, mean.view(*shape, -1), mask.view(shape))

    @torch.no_grad()
    def _choose(self, guess: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Voxels to compare, evenly over V's confidence: indices and mask, each (classes, rows)."""
        bins, classes = self.settings.bins, self.classes
        confidence = torch.softmax(logits.float(), dim=1).amax(dim=1)  # in [1 / classes, 1]
        level = ((confidence * classes - 1) / (classes - 1) * bins).long().clamp(0, bins - 1)
        group = torch.where(guess >= 0, guess * bins + level, -1).flatten()
        index, mask = sample_groups(group, classes * bins, self.settings.rows // bins)
        return index.view(classes, -1), mask.view(classes, -1)

    def _anchors(self, outputs: dict[str, torch.Tensor], label: torch.Tensor) -> dict[str, torch.Tensor]:
        """Labelled voxels of each class, whatever the branches say of them."""
        if not self.settings.anchors:
            return {}
        index, mask = sample_groups(label.flatten().long(), self.classes, self.settings.anchors)
        anchors = {
            f"anchors_{b}": self._rows(outputs[f"embedding_{b}"], index.flatten(), b).unflatten(0, index.shape)
            for b in "va"
        }
        return {**anchors, "anchor_mask": mask}

    def _rows(self, embedding: torch.Tensor, index: torch.Tensor, branch: str) -> torch.Tensor:
        project, predict = getattr(self, f"project_{branch}"), getattr(self, f"predict_{branch}")
        rows: torch.Tensor = predict(project(gather_voxels(embedding, index)))
        return rows


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Linear, LayerNorm, ReLU, Linear: (R, inputs) to (R, outputs)."""
    return nn.Sequential(
        nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU(inplace=True), nn.Linear(outputs, outputs)
    )


def gather_voxels(features: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Feature vectors (R, F) of a map (B, F, *grid) at flat positions (R,) of its (B, *grid)."""
    flat = features.flatten(2)
    voxels = flat.shape[2]
    return flat[index // voxels, :, index % voxels]
