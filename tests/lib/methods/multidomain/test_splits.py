"""Splits within domains that a pattern of the run's own tells."""

from __future__ import annotations

from pathlib import Path

from medseg.benchmark.split import split_cases
from medseg.cases import Case
from medseg.methods.multidomain.config import MultiDomainConfig
from medseg.methods.multidomain.method import MultiDomain
from medseg.training.split import SplitManifest

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
