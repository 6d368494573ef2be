"""The memory of labelled voxels that both branches are compared with."""

from __future__ import annotations

import torch
from torch import nn

from medseg.methods.caml.sampling import sample_groups


class VoxelBank(nn.Module):
    """Embeddings of labelled voxels: a fixed number per case and class, on the network's device, in its state.

    A case has one slot; writing a crop of the case overwrites, per class, what the slot held. Contents follow the
    network through `state_dict`, `.to()` and checkpoints, and are rebuilt by writing again.

    Source: CAML card sec. 4. Deviation: the released bank lives in host memory and keeps every voxel of a crop (up to
    122.5 MiB per case); ours keeps `capacity` random ones, because a step draws only a few hundred.

    Args:
        cases: slots.
        classes: classes, background included.
        capacity: embeddings kept per case and class.
        dim: length of an embedding.
        gather: under torch.distributed, store what all processes write, so that every process has the same bank.

    Attributes:
        embeddings: (cases, classes, capacity, dim) float32.
        filled: (cases, classes) how many of them exist; the existing ones come first.
    """

    embeddings: torch.Tensor
    filled: torch.Tensor

    def __init__(self, cases: int, classes: int, capacity: int, dim: int, gather: bool = True) -> None:
        super().__init__()
        if min(cases, classes, capacity, dim) < 1:
            raise ValueError(f"bank of {cases} cases x {classes} classes x {capacity} x {dim}: all must be positive")
        self.gather = gather
        self.register_buffer("embeddings", torch.zeros(cases, classes, capacity, dim))
        self.register_buffer("filled", torch.zeros(cases, classes, dtype=torch.long))

    @torch.no_grad()
    def write(self, slots: torch.Tensor, embeddings: torch.Tensor, mask: torch.Tensor) -> None:
        """Overwrite the slots of some crops; a class without any voxel keeps its old embeddings.

        Args:
            slots: (B,) slot of each crop; of two crops of one case the later one stays.
            embeddings: (B, classes, capacity, dim).
            mask: (B, classes, capacity) bool, which embeddings exist; they come first.
        """
        slots, embeddings, mask = (self._from_all(t) for t in (slots, embeddings, mask))
        counts = mask.sum(dim=2)
        for row in range(slots.shape[0]):  # one by one: with equal slots a joint write would have no defined order
            slot, count = slots[row : row + 1], counts[row : row + 1]
            has = count > 0
            new = embeddings[row : row + 1].to(self.embeddings.dtype)
            old = self.embeddings.index_select(0, slot)
            self.embeddings.index_copy_(0, slot, torch.where(has[..., None, None], new, old))
            self.filled.index_copy_(0, slot, torch.where(has, count, self.filled.index_select(0, slot)))

    @torch.no_grad()
    def draw(self, per_class: int, minimum: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Random embeddings of each class from all slots.

        Args:
            per_class: embeddings wanted per class, without replacement.
            minimum: a class with fewer embeddings in the whole bank gives none.

        Returns:
            Embeddings (classes, per_class, dim) and which of them are real (classes, per_class) bool.
        """
        classes, capacity, dim = self.embeddings.shape[1:]
        exists = torch.arange(capacity, device=self.filled.device) < self.filled[..., None]  # (cases, classes, K)
        index_of_class = torch.arange(classes, device=self.filled.device)[None, :, None]
        group = torch.where(exists, index_of_class, -1).flatten()
        index, mask = sample_groups(group, classes, per_class)
        enough = self.filled.sum(dim=0) >= minimum
        return self.embeddings.reshape(-1, dim)[index], mask & enough[:, None]

    def _from_all(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor's rows of all processes, in order of their rank."""
        if not (self.gather and torch.distributed.is_available() and torch.distributed.is_initialized()):
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)
