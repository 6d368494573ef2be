"""Weights of other models, whatever their layers are called there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from monai.networks.nets.efficientnet import EfficientNetBN
from safetensors.torch import save_file
from torch import nn

from medseg.cases import Case
from medseg.errors import NotFoundError, UnusableInputError
from medseg.inference.model_folder import load_model
from medseg.methods.multidomain.config import MultiDomainConfig
from medseg.methods.multidomain.network import build_backbone
from medseg.methods.multidomain.pretrained import load_pretrained
from medseg.networks.domain_norm import convert_batch_norm, domain_slots
from medseg.training.run import TrainingJob, train


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))


def test_names_with_a_prefix_and_slots_of_domains_are_found(tmp_path: Path) -> None:
    source = nn.ModuleDict({"student": convert_batch_norm(net(), ["a", "b"])})
    for slot in domain_slots(source, "a"):
        nn.init.constant_(slot.weight, 5)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    network = net()

    copied = load_pretrained(network, tmp_path)

    assert copied == len(network.state_dict())
    assert torch.equal(network[0].weight, source["student"][0].weight)
    assert network[1].weight.tolist() == [5, 5, 5]  # the first domain's
    converted = convert_batch_norm(net(), ["x", "y"])
    load_pretrained(converted, tmp_path)
    assert [float(slot.weight[0]) for name in "xy" for slot in domain_slots(converted, name)] == [5, 5]


def test_torch_files_are_read_and_other_shapes_left(tmp_path: Path) -> None:
    torch.save({"state_dict": {"0.weight": torch.ones(3, 1, 3, 3), "2.weight": torch.ones(9, 9)}}, tmp_path / "w.pt")
    network = net()
    before = network[2].weight.clone()

    assert load_pretrained(network, tmp_path / "w.pt") == 1
    assert float(network[0].weight.min()) == 1
    assert torch.equal(network[2].weight, before)


def test_what_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(b"x")
    save_file({"other": torch.ones(1)}, tmp_path / "other.safetensors")

    with pytest.raises(NotFoundError, match="does not exist"):
        load_pretrained(net(), tmp_path / "none.pt")
    with pytest.raises(UnusableInputError, match="no readable weights file"):
        load_pretrained(net(), tmp_path / "bad.pt")
    with pytest.raises(UnusableInputError, match="no tensor that fits"):
        load_pretrained(net(), tmp_path / "other.safetensors")


def test_published_names_of_an_efficientnet_fit_a_flexible_unet_for_grey_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = EfficientNetBN("efficientnet-b0", pretrained=False, spatial_dims=2, in_channels=3)
    published = {re.sub(r"^_blocks\.\d+\.", "_blocks.", name): v.clone() for name, v in encoder.state_dict().items()}
    save_file(published, tmp_path / "b0.safetensors")
    settings = {"network": "flexible", "dimension": 3, "channels": 1, "domains": {"a": {}, "b": {}}}
    network, *_ = build_backbone(MultiDomainConfig.from_dict(settings))
    blocks = [name for name in network.state_dict() if name.startswith("encoder._blocks")]

    copied = load_pretrained(network, tmp_path / "b0.safetensors")

    own = network.state_dict()
    assert "_blocks.15._bn1.weight" in published
    assert copied >= len(blocks) > 300
    torch.testing.assert_close(own["encoder._blocks.6.15._bn1.weight"], published["_blocks.15._bn1.weight"])
    stem = published["_conv_stem.weight"].sum(dim=1, keepdim=True)
    torch.testing.assert_close(own["encoder._conv_stem.weight"], stem)
    few = {name: value for name, value in published.items() if name.startswith("_conv_stem")}
    save_file(few, tmp_path / "few.safetensors")
    caplog.clear()
    load_pretrained(network, tmp_path / "few.safetensors")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_model_outlives_the_file_that_it_started_from(joints: list[Case], tmp_path: Path) -> None:
    settings = {"patch": (16, 16), "width": 2, "domain_batch": 2, "amp": "off", "iterations": 1, "norm_batches": 0}
    labels = {"tibia": 1, "talus": 2, "femur": 3, "humerus": 4}
    few = (joints[0], joints[3])

    def run(name: str, resume: bool = False, **more: object) -> None:
        config = MultiDomainConfig.from_dict({**settings, **more})
        train(TrainingJob("multidomain", config, labels, few, (), tmp_path / name, "cpu", resume))

    run("source", learning_rate=0.0)
    source = str(tmp_path / "source" / "model.safetensors")
    run("model", pretrained=source, learning_rate=0.0)
    one, two = (load_model(tmp_path / name).network.state_dict() for name in ("source", "model"))
    assert torch.equal(one["backbone.conv_0.conv_0.conv.weight"], two["backbone.conv_0.conv_0.conv.weight"])
    Path(source).unlink()

    assert load_model(tmp_path / "model").network is not None
    run("model", resume=True, pretrained=source, learning_rate=0.0, iterations=2)
    with pytest.raises(NotFoundError, match="does not exist"):
        run("another", pretrained=source)
