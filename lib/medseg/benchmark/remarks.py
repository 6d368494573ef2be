"""What keeps the arms of a benchmark from being compared plainly, one sentence each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 3  # ours: names written out in a sentence


def code_remarks(codes: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence where results come from different sources.

    Args:
        codes: run -> hashes of the sources that made it, oldest first; none where that was not kept.
    """
    made: dict[str, list[str]] = {}
    for run, hashes in codes.items():
        made.setdefault(" then ".join(hashes) or "unknown sources", []).append(run)
    if len({single for hashes in codes.values() for single in hashes or ("unknown",)}) < 2:
        return []
    each = "; ".join(f"{_named(runs)} by {code}" for code, runs in made.items())
    return [
        f"The runs were not all made by the same sources of medseg: {each}. Delete folders of runs/ to make them again."
    ]


def case_remarks(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence about every arm that was judged on other cases than the rest.

    Args:
        arms: arm -> case -> value; arms that give no cases are left out.
    """
    judged = {name: cases for name, cases in arms.items() if cases}
    every = list(dict.fromkeys(case for cases in judged.values() for case in cases))
    remarks = []
    for name, cases in judged.items():
        absent = [case for case in every if case not in cases]
        if absent:
            remarks.append(
                f"Arm {name} was judged on {len(cases)} of {len(every)} cases, without {_named(absent)}: its mean is "
                "one of other cases; differences, tests and ratios use the cases that both arms have."
            )
    return remarks


def _named(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
