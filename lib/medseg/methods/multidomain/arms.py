"""Benchmark arms that train several networks: one per domain, from scratch or from another domain.

Budget: all arms of a benchmark show the network the same number of slices. The joint arms take T steps with a batch of
each of the K domains; here each of K networks takes T steps with a batch of its own domain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from medseg.cases import Case
from medseg.domains import assign_domains


def run_individual(context: Any) -> dict[str, Any]:
    """One network per domain, T steps each.

    Args:
        context: `medseg.benchmark.arms.ArmContext`.
    """
    return _per_domain(context, lambda name, cases: _train(context, name, cases[name], context.iterations))


def run_transfer(context: Any) -> dict[str, Any]:
    """One network per domain: T/2 steps on another domain, then T/2 steps on its own from there.

    The other domain is the next one in the list, so that each domain is a source once.
    """
    half = max(1, context.iterations // 2)

    def train(name: str, cases: Mapping[str, Sequence[Case]]) -> Any:
        names = list(cases)
        source = names[(names.index(name) + 1) % len(names)]
        _train(context, f"{name}_from_{source}", cases[source], half)
        before = context.out / f"{name}_from_{source}" / "model.safetensors"
        return _train(context, name, cases[name], half, {"pretrained": str(before)})

    return _per_domain(context, train)


def _per_domain(context: Any, train: Callable[[str, Mapping[str, Sequence[Case]]], Any]) -> dict[str, Any]:
    """Train for each domain, evaluate on its held-out cases; the seconds are those of the trainings."""
    names = assign_domains([*context.training_cases, *context.held_out_cases], context.config.domain_pattern)
    training = _by_domain([case for case in context.training_cases if case.label is not None], names)
    held_out = _by_domain(context.held_out_cases, names)
    results: dict[str, Any] = {}
    for name in training:
        predictor = train(name, training)
        if name in held_out:
            results |= replace(context, held_out_cases=tuple(held_out[name])).evaluate(predictor)
    return {"cases": results, "iterations": context.iterations}


def _train(
    context: Any, name: str, cases: Sequence[Case], iterations: int, more: Mapping[str, Any] | None = None
) -> Any:
    """Train on the cases of one domain, with a registry of its own."""
    settings = {"domains": {}, "iterations": iterations, **(more or {})}
    return context.train(settings, name, cases=tuple(cases))


def _by_domain(cases: Sequence[Case], names: Mapping[str, str]) -> dict[str, list[Case]]:
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(names[case.id], []).append(case)
    return groups
