from __future__ import annotations

import pytest
import torch

from medseg.networks.vnet import VNet, prefer_channels_last


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("upsampling", "millions"), [("transposed", 9.449), ("interpolated", 10.276)])
def test_parameter_count_is_the_cards(upsampling: str, millions: float) -> None:
    assert round(parameters(VNet(1, 2, upsampling=upsampling)) / 1e6, 3) == millions


@pytest.mark.parametrize("upsampling", ["transposed", "interpolated"])
@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
@pytest.mark.parametrize("grid", [(33, 31, 18), (35, 50)])
def test_odd_grids_keep_their_size(grid: tuple[int, ...], norm: str, upsampling: str) -> None:
    network = VNet(2, 3, spatial_dims=len(grid), width=4, norm=norm, upsampling=upsampling)
    image = torch.arange(2 * 2 * torch.Size(grid).numel()).float().view(2, 2, *grid) / 1e5
    logits, embedding = network.with_embedding(image)
    assert logits.shape == (2, 3, *grid)
    assert embedding.shape == (2, 4, *grid)
    assert torch.isfinite(logits).all()


def test_levels_have_the_cards_grids_and_channels() -> None:
    maps = VNet(1, 2, width=8).encoder(torch.zeros(1, 1, 32, 32, 16))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (8, 32, 32, 16),
        (16, 16, 16, 8),
        (32, 8, 8, 4),
        (64, 4, 4, 2),
        (128, 2, 2, 1),
    ]


def test_padding_an_odd_axis_repeats_the_last_voxel() -> None:
    """An odd image and the same image with its last plane twice look the same from level 2 on."""
    encoder = VNet(1, 2, width=4).eval().encoder
    encoder.levels[0] = torch.nn.Identity()
    encoder.downs[0] = torch.nn.AvgPool3d(2)
    image = torch.randn(1, 1, 16, 16, 15)
    seen: list[torch.Tensor] = []
    encoder.downs[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encoder.levels[1] = torch.nn.Conv3d(1, 8, 1)
    encoder(image)
    assert torch.equal(seen[0], torch.cat([image, image[..., -1:]], dim=-1))


def test_logits_are_the_head_of_the_embedding_in_eval() -> None:
    network = VNet(1, 2, width=4).eval()
    logits, embedding = network.with_embedding(torch.randn(1, 1, 16, 16, 16))
    assert torch.equal(logits, network.head(embedding))


def test_eval_is_deterministic_and_train_drops_channels() -> None:
    network = VNet(1, 2, width=4, norm="instance")
    image = torch.randn(1, 1, 32, 32, 16)
    assert not torch.equal(network(image), network(image))
    network.eval()
    assert torch.equal(network(image), network(image))


def test_skips_are_added() -> None:
    """With the way up from below silenced, the decoder passes the encoder's finest map on."""
    network = VNet(1, 2, width=4).eval()
    with torch.no_grad():
        network.decoder.ups[0][1].weight.zero_()
        network.decoder.ups[0][1].bias.zero_()
    image = torch.randn(1, 1, 16, 16, 16)
    assert torch.equal(network.with_embedding(image)[1], network.decoder.levels[0](network.encoder(image)[0]))


def test_residual_levels_have_the_same_size_and_add_their_input() -> None:
    plain, residual = VNet(1, 2, width=4), VNet(1, 2, width=4, residual=True).eval()
    assert parameters(plain) == parameters(residual)
    level = residual.encoder.levels[2]
    for parameter in level.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.rand(1, 16, 8, 8, 8)  # positive, so that the last ReLU changes nothing
    assert torch.equal(level(x), x)


def test_every_parameter_gets_a_gradient() -> None:
    network = VNet(1, 2, width=4)
    network(torch.randn(2, 1, 32, 32, 16)).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"norm": "layer"}, "layer"), ({"upsampling": "nearest"}, "nearest"), ({"spatial_dims": 4}, "spatial_dims = 4")],
)
def test_unknown_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VNet(1, 2, **options)  # type: ignore[arg-type]


def test_channels_last_changes_the_storage_and_not_the_answer() -> None:
    network = VNet(1, 2, width=4).eval()
    image = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    before, weights = network(image), {name: value.clone() for name, value in network.state_dict().items()}

    prefer_channels_last(torch.nn.Sequential(network, torch.nn.Conv3d(2, 2, 3)))

    assert torch.allclose(network(image), before, atol=1e-4)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    inner = network.state_dict()["encoder.levels.1.units.0.0.weight"]
    assert inner.is_contiguous(memory_format=torch.channels_last_3d)
    prefer_channels_last(VNet(1, 2, spatial_dims=2, width=4))  # pictures have nothing to store otherwise
