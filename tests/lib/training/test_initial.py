from __future__ import annotations

import copy
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from medseg.cases import load_cases
from medseg.errors import NotFoundError, UnusableInputError
from medseg.inference.model_folder import save_model
from medseg.methods import method_class
from medseg.methods.local_discrimination.network import EmbeddingNet
from medseg.networks.domain_norm import convert_batch_norm, domain_slots, without_slot
from medseg.networks.hooks import insert_after
from medseg.networks.vnet import VNet
from medseg.phantoms.study import FLAT, StudyOptions, write_dataset
from medseg.training.initial import load_initial
from medseg.training.settings import build_config


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2))


def vnet(channels: int = 1, classes: int = 3) -> VNet:
    return VNet(channels, classes, spatial_dims=2, width=4, norm="instance")


def save(network: nn.Module, path: Path) -> Path:
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    return path


def test_matching_layers_are_copied_and_the_others_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = {"0.weight": torch.ones(4, 3), "0.bias": torch.ones(4), "1.weight": torch.ones(5, 4), "x": torch.ones(1)}
    save_file(given, tmp_path / "model.safetensors")
    net = network()
    before = net[1].weight.clone()

    account = load_initial(net, tmp_path)

    assert account.loaded == ["0.weight", "0.bias"]
    assert account.shape_differs == ["1.weight"]
    assert account.missing == ["1.bias", "2.weight", "2.bias"]
    assert account.unused == 2
    assert torch.equal(net[0].weight, torch.ones(4, 3))
    assert torch.equal(net[1].weight, before)


def test_trunk_of_a_pretrained_network_gives_equal_maps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pretrained, net = (
        EmbeddingNet(VNet(1, 2, spatial_dims=2, width=4, norm="instance", dropout=0.0), 8, 4),
        vnet().eval(),
    )
    file = save(pretrained, tmp_path / "a.safetensors")

    account = load_initial(net, file)

    image = torch.randn(1, 1, 32, 32)
    assert torch.equal(net.with_embedding(image)[1], pretrained.maps(image)[0])
    assert account.parts == {"trunk.* as *": len(account.loaded)}
    assert account.shape_differs == ["head.weight", "head.bias"]
    assert account.missing == []


def test_part_of_a_network_starts_from_a_whole_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, net = vnet(), nn.ModuleDict({"student": vnet(), "other": nn.Linear(2, 2)})
    file = save(source, tmp_path / "a.safetensors")

    account = load_initial(net, file)

    assert all(torch.equal(net["student"].state_dict()[key], value) for key, value in source.state_dict().items())
    assert account.missing == ["other.weight", "other.bias"]


def test_encoder_alone_and_levels_with_a_block_behind_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = nn.ModuleDict({"trunk": vnet()})
    net = nn.ModuleDict({"encoder": vnet().encoder, "head": nn.Sequential(*(nn.Linear(2, 2) for _ in range(30)))})
    insert_after(net["encoder"], "levels.3", nn.Identity())
    file = save(source, tmp_path / "a.safetensors")

    account = load_initial(net, file)

    assert torch.equal(
        net["encoder"].levels[3][0].units[0][0].weight, source["trunk"].encoder.levels[3].units[0][0].weight
    )
    assert all(name.startswith("head.") for name in account.missing)


def test_encoder_levels_are_not_taken_for_decoder_levels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, net = nn.ModuleDict({"decoder": vnet().decoder}), nn.ModuleDict({"encoder": vnet().encoder})
    file = save(source, tmp_path / "a.safetensors")

    with pytest.raises(UnusableInputError, match="no tensor whose name and shape match"):
        load_initial(net, file)


@pytest.mark.parametrize(("given", "wanted"), [(3, 1), (1, 3)])
def test_grey_and_colour_answer_alike_to_a_grey_picture(tmp_path: Path, given: int, wanted: int) -> None:
    torch.manual_seed(0)
    source, net = vnet(channels=given), vnet(channels=wanted)
    file = save(source, tmp_path / "a.safetensors")

    account = load_initial(net, file)

    grey = torch.randn(1, 1, 32, 32)
    assert account.adapted == ["encoder.levels.0.units.0.0.weight"]
    expected = source.encoder(grey.expand(-1, given, -1, -1))[0]
    assert torch.allclose(net.encoder(grey.expand(-1, wanted, -1, -1))[0], expected, atol=1e-5)


def test_account_is_printed_and_warns_of_little(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_file({"2.bias": torch.full((2,), 7.0)}, tmp_path / "a.safetensors")
    net = network()

    with caplog.at_level(logging.INFO):
        load_initial(net, tmp_path / "a.safetensors")

    assert net[2].bias.tolist() == [7.0, 7.0]
    assert "1 of 6 tensors loaded (equal names: 1)" in caplog.text
    assert "not in the file: 0.weight, 0.bias, 1.weight, 1.bias, 2.weight" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


def test_nothing_to_start_from_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"does not exist; give a model.safetensors or its folder"):
        load_initial(network(), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UnusableInputError, match="no readable safetensors file"):
        load_initial(network(), tmp_path)
    save_file({"other": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UnusableInputError, match="no tensor whose name and shape match"):
        load_initial(network(), tmp_path)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("flat"), 3, options=replace(FLAT, shape=(40, 40)))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, study: Path) -> Path:
    """A model of local discrimination at a width that no other method has by default."""
    kind, folder = method_class("local_discrimination"), tmp_path_factory.mktemp("pretrained")
    config = build_config("local_discrimination", "cpu", typed={"width": 4, "patch": "32,32"})
    save_model(folder, kind(kind.fit_config(config, load_cases([study])), {}))
    return folder


@pytest.mark.parametrize(
    ("name", "left_out"),
    [("local_discrimination", ()), ("supervised", ("head.",)), ("caml", ("student.head.", "assistant.head."))],
)
def test_who_can_start_from_a_pretrained_model_takes_its_shape(
    name: str, left_out: tuple[str, ...], pretrained: Path, study: Path
) -> None:
    kind = method_class(name)
    config = kind.fit_config(build_config(name, "cpu", typed={"init": str(pretrained)}), load_cases([study]))
    network = kind(config, {"a": 1, "b": 2}).network

    account = load_initial(network, pretrained)

    assert (config.to_dict()["width"], config.to_dict()["norm"]) == (4, "instance")
    encoder = {key for key in network.state_dict() if ".encoder.levels." in f".{key}" and ".units." in key}
    assert len(encoder) >= 48  # weight and bias of 12 convolutions and of 12 norms
    assert encoder <= set(account.loaded)
    assert all(key.startswith(left_out) for key in account.shape_differs)


SIZES = {"dram": (24, 24, 16), "seg4reg": (64, 64), "multidomain": (40, 32, 8)}
PARTS = {
    "dram": {"backbone.": "trunk.", "final.": "trunk."},
    "seg4reg": {"segmenter.": "trunk."},
    "multidomain": {"backbone.": "trunk.flat.backbone."},
}


@pytest.mark.parametrize("name", list(SIZES))
def test_who_has_another_network_starts_from_that_network_pretrained(name: str, tmp_path: Path) -> None:
    size, kind = SIZES[name], method_class("local_discrimination")
    options = replace(FLAT, shape=size) if len(size) == 2 else StudyOptions(shape=size)
    cases = load_cases([write_dataset(tmp_path / "data", 3, options=options)])
    config = build_config("local_discrimination", "cpu", typed={"width": 12, "trunk": name})
    save_model(tmp_path / "pre", kind(kind.fit_config(config, cases), {}))

    other = method_class(name)
    config = other.fit_config(build_config(name, "cpu", typed={"init": str(tmp_path / "pre")}), cases)
    network = other(config, {"lesion": 1} if name == "dram" else other.fit_labels({"atrium": 1})).network
    account = load_initial(network, tmp_path / "pre")

    given, own = load_file(tmp_path / "pre" / "model.safetensors"), network.state_dict()
    for part, source in PARTS[name].items():
        below = [key for key in own if key.startswith(part)]
        assert sum(own[key].ndim >= 4 for key in below) >= 10
        for key in below:
            assert torch.equal(own[key], given[source + without_slot(key).removeprefix(part)]), key
        assert set(below) <= set(account.loaded)
    assert [key for key in account.shape_differs if key.startswith(tuple(PARTS[name]))] == []


def test_all_slots_of_a_norm_start_from_the_norm_without_slots(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = nn.Sequential(*(nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)) for _ in range(9)))
    for layer in source:
        nn.init.normal_(layer[1].weight)
    file = save(nn.ModuleDict({"trunk": source}), tmp_path / "a.safetensors")
    net = nn.ModuleDict({"backbone": convert_batch_norm(copy.deepcopy(source), ["knee", "hip"])})
    for value in net.parameters():
        nn.init.zeros_(value)

    load_initial(net, file)

    for domain in ("knee", "hip"):
        assert all(
            torch.equal(slot.weight, layer[1].weight)
            for slot, layer in zip(domain_slots(net, domain), source, strict=True)
        )


@pytest.mark.parametrize("name", ["dram", "seg4reg", "multidomain"])
def test_who_cannot_starts_from_random_weights_with_a_warning(
    name: str, pretrained: Path, study: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind = method_class(name)
    config = build_config(name, "cpu", typed={"init": str(pretrained)})
    if name == "multidomain":
        config = kind.fit_config(config, load_cases([study]))
    network = kind(config, {"lesion": 1} if name == "dram" else kind.fit_labels({"atrium": 1})).network
    before = {key: value.clone() for key, value in network.state_dict().items()}

    with pytest.raises(UnusableInputError, match="no tensor whose name and shape match"):
        load_initial(network, pretrained)
    account = load_initial(network, pretrained, may_miss=True)

    assert account.loaded == []
    assert "it starts from random weights" in caplog.text
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_what_was_typed_wins_over_the_model_in_init(pretrained: Path) -> None:
    config = build_config("supervised", "cpu", typed={"init": str(pretrained), "width": 12})

    assert (config.to_dict()["width"], config.to_dict()["network"]) == (12, "vnet")
