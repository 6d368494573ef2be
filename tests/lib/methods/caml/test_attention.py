from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from medseg.methods.caml.attention import AttentionLayer, CMABlock


def awake(block: nn.Module, seed: int = 0) -> nn.Module:
    """Fill the zero-initialised outputs, so that there is something to see."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in block.parameters():
            if not parameter.any():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return block


def block(dropout: float = 0.0, drop_batch: float = 0.0, channels: int = 16) -> CMABlock:
    torch.manual_seed(0)
    result = awake(CMABlock(channels, heads=4, dropout=dropout, drop_batch=drop_batch))
    assert isinstance(result, CMABlock)
    return result


def x(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 16, 4, 3, 2, generator=torch.Generator().manual_seed(1))


def test_parameter_count_is_the_cards() -> None:
    assert round(sum(p.numel() for p in CMABlock(128).parameters()) / 1e6, 3) == 0.397


@pytest.mark.parametrize("shape", [(2, 16, 4, 4, 2), (1, 16, 5, 3), (4, 16, 1, 1, 1)])
def test_a_fresh_block_is_the_identity(shape: tuple[int, ...]) -> None:
    image = torch.randn(shape)
    assert torch.equal(CMABlock(16)(image), image)


def test_fused_attention_equals_the_naive_one() -> None:
    torch.manual_seed(0)
    layer = AttentionLayer(16, heads=4, expansion=4, dropout=0.0)
    tokens = torch.randn(2, 7, 16)
    q, k, v = layer.qkv(tokens).chunk(3, dim=-1)
    heads = []
    for h in range(4):
        part = slice(4 * h, 4 * h + 4)
        weights = torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(4), dim=-1)
        heads.append(weights @ v[..., part])
    assert torch.allclose(layer._attend(tokens), torch.cat(heads, dim=-1), atol=1e-6)


@pytest.mark.parametrize("mode", ["space", "space+batch"])
def test_voxel_order_does_not_matter(mode: str) -> None:
    cma, tokens = block(), x().flatten(2)
    order = torch.randperm(tokens.shape[2], generator=torch.Generator().manual_seed(2))
    with cma.using(mode):
        assert torch.allclose(cma(tokens)[..., order], cma(tokens[..., order]), atol=1e-5)
        assert not torch.allclose(cma(tokens), tokens, atol=1e-3)


@pytest.mark.parametrize("mode", ["batch", "space+batch"])
def test_sample_order_does_not_matter(mode: str) -> None:
    cma, order = block(), [2, 0, 1]
    with cma.using(mode):
        assert torch.allclose(cma(x())[order], cma(x()[order]), atol=1e-5)


def test_only_the_batch_step_mixes_samples() -> None:
    cma = block().eval()
    with cma.using("space"):
        assert torch.allclose(cma(x())[:1], cma(x()[:1]), atol=1e-6)
    assert not torch.allclose(cma(x())[:1], cma(x()[:1]), atol=1e-3)


def test_one_sample_has_no_cross_terms_in_the_batch_step() -> None:
    """Every token goes its own way: changing one voxel changes that voxel alone."""
    cma = block().eval()
    image, changed = x(1), x(1)
    changed[..., 0, 0, 0] += 1
    with cma.using("batch"):
        difference = (cma(changed) - cma(image)).abs().sum(1)[0]
    assert difference[0, 0, 0] > 1e-3
    assert difference.flatten()[1:].max() < 1e-6


def test_flags_do_not_depend_on_train_or_eval() -> None:
    cma = block()
    assert torch.allclose(cma.train()(x()), cma.eval()(x()), atol=1e-6)
    cma.enabled = False
    assert torch.equal(cma.train()(x()), x())
    assert torch.equal(cma.eval()(x()), x())


def test_using_restores_what_was() -> None:
    cma = block()
    with pytest.raises(RuntimeError), cma.using("space", enabled=False):
        raise RuntimeError
    assert (cma.mode, cma.enabled) == ("space+batch", True)


def test_no_dropout_in_eval() -> None:
    cma = block(dropout=0.5)
    assert not torch.equal(cma.train()(x()), cma(x()))
    assert torch.equal(cma.eval()(x()), cma(x()))


def test_batch_step_is_dropped_in_training_only() -> None:
    cma = block(drop_batch=1.0)
    with cma.using("space"):
        space = cma(x())
    assert torch.allclose(cma.train()(x()), space, atol=1e-6)
    assert not torch.allclose(cma.eval()(x()), space, atol=1e-3)


def test_every_parameter_gets_a_gradient_even_when_the_batch_step_is_dropped() -> None:
    cma = block(drop_batch=1.0)
    cma(x()).square().sum().backward()
    assert all(p.grad is not None for p in cma.parameters())


def test_no_matrix_of_all_pairs_is_kept_for_backward() -> None:
    cma, sizes = CMABlock(16), []
    tokens = torch.randn(2, 16, 16, 16, 4, requires_grad=True)  # N = 1024: N x N would be 2 x 4 x 1024 x 1024

    def note(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        cma.train()(tokens)
    assert max(sizes) < 1024 * 1024


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="channels = 18"):
        CMABlock(18)
    with pytest.raises(ValueError, match="'joint'"), CMABlock(16).using("joint"):
        pass
