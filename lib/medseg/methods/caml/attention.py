"""Cross-sample mutual attention (CMA): voxels attend to voxels, then the samples of a batch to each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

MODES = ("space+batch", "space", "batch")


class CMABlock(nn.Module):
    """Factorised attention over a feature map: never jointly over space and batch, never an N x N matrix in memory.

    The output projections start at zero, so a fresh block is the identity. `mode` and `enabled` are plain attributes
    and do not depend on train or eval; `using` changes them for a while. In training the batch step is dropped at
    random, so that the network also works without it: with one sample, or where a result must not depend on what else
    is in the batch.

    Source: Gao et al., CAML, MICCAI 2023, arXiv 2307.06312; CAML card sec. 3: two layers of 4 heads and feed-forward
    width 4 C, no positional encoding; 0.397 M parameters at C = 128.
    Deviation: pre-norm with zero-initialised output instead of post-norm; active in eval, where the released code skips
    it; dropout on the layers' outputs and not on the attention weights, because fused attention on a CPU would fall
    back to the full matrix; the batch step may be dropped.

    Args:
        channels: C of the map; a multiple of `heads`.
        heads: attention heads.
        expansion: width of the feed-forward part over C.
        dropout: on the output of attention and feed-forward, in training only.
        drop_batch: probability to leave out the batch step of a training forward.

    Raises:
        ValueError: C is not a multiple of `heads`.
    """

    def __init__(
        self, channels: int, heads: int = 4, expansion: int = 4, dropout: float = 0.5, drop_batch: float = 0.5
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"channels = {channels} is not a multiple of heads = {heads}")
        self.space = AttentionLayer(channels, heads, expansion, dropout)
        self.batch = AttentionLayer(channels, heads, expansion, dropout)
        self.drop_batch = drop_batch
        self.mode = "space+batch"
        self.enabled = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, *grid) to the same shape."""
        if not self.enabled:
            return x
        tokens = rearrange(x, "b c ... -> b (...) c")  # (B, N, C)
        if "space" in self.mode:
            tokens = self.space(tokens)
        if "batch" in self.mode:
            tokens = tokens + self._keep_batch() * (self._across_batch(tokens) - tokens)
        return tokens.transpose(1, 2).reshape(x.shape)

    @contextmanager
    def using(self, mode: str = "space+batch", enabled: bool = True) -> Iterator[None]:
        """Another mode ("space+batch", "space" or "batch") or switched off, until the context ends."""
        if mode not in MODES:
            raise ValueError(f"mode = {mode!r} is unknown; choose one of {MODES}")
        before = self.mode, self.enabled
        self.mode, self.enabled = mode, enabled
        try:
            yield
        finally:
            self.mode, self.enabled = before

    def _across_batch(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N, C): the B samples are the sequence, the N positions the batch."""
        return self.batch(tokens.transpose(0, 1)).transpose(0, 1)

    def _keep_batch(self) -> float:
        """0 or 1. The step is computed either way: every process of a group must use the same parameters."""
        return 0.0 if self.training and float(torch.rand(())) < self.drop_batch else 1.0


class AttentionLayer(nn.Module):
    """Pre-norm transformer layer: x + attention(norm(x)), then x + feed_forward(norm(x)); the identity at the start."""

    def __init__(self, channels: int, heads: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.norm_forward = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, expansion * channels)
        self.narrow = nn.Linear(expansion * channels, channels)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.out, self.narrow):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, C) to the same shape; attention runs along N."""
        x = x + self.dropout(self.out(self._attend(self.norm_attention(x))))
        return x + self.dropout(self.narrow(self.dropout(F.relu(self.widen(self.norm_forward(x))))))

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")
