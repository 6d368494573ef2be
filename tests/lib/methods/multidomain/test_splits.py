"""Splits within domains that a pattern of the run's own tells."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medseg.benchmark.split import split_cases
from medseg.cases import Case, load_cases
from medseg.methods.multidomain.config import MultiDomainConfig
from medseg.methods.multidomain.method import MultiDomain
from medseg.phantoms.joints import make_joint
from medseg.phantoms.study import write_grid
from medseg.training.split import SplitManifest, with_groups

CONFIG = MultiDomainConfig.from_dict({"domain_pattern": r"^(site[AB])"})
CASES = [
    Case(f"{site}-{i}x", Path(f"{site}-{i}x.nii.gz"), Path("m"), dataset="all")
    for site, count in (("siteA", 12), ("siteB", 4))
    for i in range(count)
]


def sites(cases: tuple[Case, ...]) -> list[str]:
    return sorted({case.id[:5] for case in cases})


def test_domains_of_the_runs_own_pattern_are_split_one_by_one(tmp_path: Path) -> None:
    groups = MultiDomain.group_cases(CASES, CONFIG)
    [split] = split_cases(CASES, 4, 4, 1, MultiDomain, groups)
    frozen = SplitManifest(tmp_path / "split.json").assign(CASES, MultiDomain, CONFIG)

    assert set(MultiDomain.group_cases(CASES).values()) == {"all"}
    assert split.labelled == ("siteA-0x", "siteA-1x", "siteB-0x", "siteB-1x")
    assert [case.id[:5] for case in split.held_out] == ["siteA"] * 2 + ["siteB"] * 2
    assert sites(frozen.validation) == ["siteA", "siteB"]


def test_domain_with_one_case_left_in_training_keeps_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "spine"
    for name in ("vb1", "vb2"):
        for i in range(2):
            for kind, values in zip(("images", "labels"), make_joint("knee", i, (16, 16, 4)), strict=True):
                write_grid(folder / kind / f"{name}_{i}.nii.gz", values, np.eye(4))
    config = MultiDomainConfig.from_dict({"patch": (16, 16)})
    cases = with_groups(load_cases(folder), MultiDomain, config)
    split = SplitManifest(tmp_path / "split.json").assign(cases, MultiDomain, config)

    assert sorted(case.id[:3] for case in split.training) == ["vb1", "vb2"]
    assert sorted(case.id[:3] for case in split.validation) == ["vb1", "vb2"]
    assert list(MultiDomain.fit_config(config, split.training).to_dict()["domains"]) == ["vb1", "vb2"]
