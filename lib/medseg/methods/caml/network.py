"""The two branches of CAML as one module."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from medseg.methods.caml.attention import CMABlock
from medseg.methods.caml.correlation import Correlator
from medseg.networks.hooks import HookedBranch, insert_after
from medseg.networks.vnet import VNet

Branch = VNet | HookedBranch


class CAMLNet(nn.Module):
    """Branch V, the product, and branch A, which is there to disagree with it.

    In eval mode `forward` is V alone and returns one tensor, so that any inferer can use it. In train mode it returns a
    dict with everything the losses need, heads included, so that hooks of data parallelism and autocast see it all.

    Source: Gao et al., CAML, MICCAI 2023, arXiv 2307.06312; CAML card sec. 3 and 4.
    Deviation: `both` runs the two branches in eval with the attention of A on, which the released code cannot.

    Args:
        student: branch V: a `VNet`, or any network in a `HookedBranch`.
        assistant: branch A, likewise; `CMABlock`s inside it are found by themselves.
        correlator: heads and bank of omni-correlation; None leaves it out.
        average: keep a running average of V's weights and predict with it (`update_average`).
    """

    def __init__(
        self, student: Branch, assistant: Branch, correlator: Correlator | None = None, average: bool = False
    ) -> None:
        super().__init__()
        self.student: Branch = student
        self.assistant: Branch = assistant
        self.correlator = correlator
        self.average: Branch | None = None
        if average:
            self.average = copy.deepcopy(student)
            self.average.requires_grad_(False).eval()

    @property
    def product(self) -> Branch:
        """The branch that predicts: the average of V where there is one, else V."""
        return self.student if self.average is None else self.average

    def forward(
        self,
        image: torch.Tensor,
        label: torch.Tensor | None = None,
        slots: torch.Tensor | None = None,
        assistant_image: torch.Tensor | None = None,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Eval: logits (B, classes, *grid) of V. Train: a dict.

        Args:
            image: (B, C, *grid), labelled images first.
            label: (L, 1, *grid) truth of the first L images; without it no correlation is computed.
            slots: (L,) their slots in the bank.
            assistant_image: (B, C, *grid) another view of the same images for A; None: the same.

        Returns:
            In train mode `logits_v`, `logits_a`, `embedding_v`, `embedding_a` and, with a correlator and labels, the
            entries of `Correlator.forward`.
        """
        if not self.training:
            logits: torch.Tensor = self.product(image)
            return logits
        outputs = {}
        outputs["logits_v"], outputs["embedding_v"] = self.student.with_embedding(image)
        other = image if assistant_image is None else assistant_image
        outputs["logits_a"], outputs["embedding_a"] = self.assistant.with_embedding(other)
        if self.correlator is not None and label is not None and slots is not None:
            outputs |= self.correlator(outputs, label, slots)
        return outputs

    def both(self, image: torch.Tensor, mode: str = "space") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits of V and A (B, classes, *grid), and V's embedding (B, F, *grid).

        Args:
            image: (B, C, *grid).
            mode: attention of A; "space" makes each image's result independent of the rest of the batch.
        """
        with self.attention(mode):
            logits_v, embedding = self.product.with_embedding(image)
            return logits_v, self.assistant(image), embedding

    @contextmanager
    def attention(self, mode: str = "space+batch", enabled: bool = True) -> Iterator[None]:
        """Set mode and switch of all `CMABlock`s of A until the context ends."""
        with ExitStack() as stack:
            for module in self.assistant.modules():
                if isinstance(module, CMABlock):
                    stack.enter_context(module.using(mode, enabled))
            yield

    @torch.no_grad()
    def update_average(self, iteration: int, decay: float) -> None:
        """Move the average towards V; the decay warms up as (1 + t) / (10 + t), so the random start is forgotten."""
        if self.average is None:
            return
        share = 1.0 - min(decay, (1 + iteration) / (10 + iteration))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.student.parameters()), share)
        for mean, now in zip(self.average.buffers(), self.student.buffers(), strict=True):
            mean.copy_(now)

    def train(self, mode: bool = True) -> CAMLNet:
        """Train or eval mode; the average always stays in eval mode."""
        super().train(mode)
        if self.average is not None:
            self.average.eval()
        return self


def build_vnets(channels: int, classes: int, *, residual_assistant: bool = False, **settings: Any) -> tuple[VNet, VNet]:
    """V with transposed convolutions and A with interpolation (CAML card sec. 3).

    Args:
        channels: image channels.
        classes: classes, background included.
        residual_assistant: A with residual levels.
        settings: `spatial_dims`, `width`, `norm`, `dropout` of `VNet`.
    """
    student = VNet(channels, classes, upsampling="transposed", **settings)
    assistant = VNet(channels, classes, upsampling="interpolated", residual=residual_assistant, **settings)
    return student, assistant


def add_attention(assistant: nn.Module, channels: int, where: str = "encoder.levels.3", **settings: Any) -> None:
    """Insert a `CMABlock` behind the level at an eighth of the grid.

    Args:
        assistant: branch A, changed in place.
        channels: channels of the map there.
        where: dotted name of the sub-module that makes the map; the default is level 4 of `VNet`.
        settings: `heads`, `expansion`, `dropout`, `drop_batch` of `CMABlock`.
    """
    insert_after(assistant, where, CMABlock(channels, **settings))
