"""A small union of joint phantoms, and methods over it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from medseg.cases import Case, load_cases
from medseg.methods.base import Batch, Sample, TrainingSet
from medseg.methods.multidomain.config import MultiDomainConfig
from medseg.methods.multidomain.method import MultiDomain
from medseg.phantoms.joints import write_joints

LABELS = {"tibia": 1, "talus": 2, "femur": 3, "humerus": 4}
SMALL = {"patch": (32, 32), "width": 4, "domain_batch": 4, "amp": "off", "iterations": 40, "norm_batches": 2}

Make = Callable[..., MultiDomain]


@pytest.fixture(scope="session")
def joints(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """Three cases of each of three joints, with the names of their labels."""
    return load_cases(write_joints(tmp_path_factory.mktemp("joints"), 3, (32, 32, 6)))


@pytest.fixture
def make(joints: list[Case]) -> Make:
    """A method over the joints with some settings changed."""

    def build(cases: list[Case] | None = None, **settings: object) -> MultiDomain:
        torch.manual_seed(0)
        config = MultiDomain.fit_config(MultiDomainConfig.from_dict({**SMALL, **settings}), cases or joints)
        return MultiDomain(config, LABELS)

    return build


@pytest.fixture
def training_set() -> Callable[[MultiDomain, list[Case]], TrainingSet]:
    """Makes the whole training set, loaded once."""

    def build(method: MultiDomain, cases: list[Case]) -> TrainingSet:
        cache = {case.id: method.load(case) for case in cases}
        return TrainingSet(tuple(cases), lambda case: cache[case.id])

    return build


@pytest.fixture
def draw_batch() -> Callable[..., Batch]:
    """Draws one batch of every stream."""

    loaded: dict[tuple[int, str], Sample] = {}

    def load(method: MultiDomain, case: Case) -> Sample:
        key = (id(method), case.id)
        if key not in loaded:
            loaded[key] = method.load(case)
        return loaded[key]

    def build(method: MultiDomain, cases: list[Case], seed: int = 0) -> Batch:
        batch: Batch = {}
        for stream in method.streams(cases):
            generator = torch.Generator().manual_seed(seed)
            drawn = [method.sample(load(method, case), stream.name, generator) for case in stream.cases]
            batch[stream.name] = {key: torch.stack([item[key] for item in drawn]) for key in drawn[0]}
        return batch

    return build
