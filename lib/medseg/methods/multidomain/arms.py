"""Benchmark arms that train several networks: one per domain, from scratch or from another domain.

Budget: every arm of a benchmark takes T steps in all, of the same number of slices each, and so sees every domain
equally often. The joint arms take T steps with n slices of each of the K domains; here each of K networks takes T / K
steps with K n slices of its own domain. `individual_steps` reads the budget the other way: T steps with n slices for
each of them, as many slices and K times as many steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from medseg.cases import Case
from medseg.domains import assign_domains
from medseg.errors import MedsegError


def run_individual(context: Any) -> dict[str, Any]:
    """One network per domain, T / K steps of K n slices each.

    Args:
        context: `medseg.benchmark.arms.ArmContext`.
    """

    def train(name: str, cases: Mapping[str, Sequence[Case]]) -> Any:
        steps = max(1, round(context.iterations / len(cases)))
        return _train(context, name, cases[name], steps, _batch(context, len(cases)))

    return _per_domain(context, train)


def run_individual_steps(context: Any) -> dict[str, Any]:
    """One network per domain, T steps of n slices each."""
    return _per_domain(context, lambda name, cases: _train(context, name, cases[name], context.iterations, {}))


def run_transfer(context: Any) -> dict[str, Any]:
    """One network per domain: half of its T / K steps on another domain, then half on its own from there.

    The other domain is the next one in the list, so that each domain is a source once.
    """

    def train(name: str, cases: Mapping[str, Sequence[Case]]) -> Any:
        names = list(cases)
        if len(names) < 2:
            raise MedsegError(f"the arm transfer needs two domains, but all training cases are of {name}")
        half, batch = max(1, round(context.iterations / (2 * len(names)))), _batch(context, len(names))
        source = names[(names.index(name) + 1) % len(names)]
        _train(context, f"{name}_from_{source}", cases[source], half, batch)
        before = context.out / f"{name}_from_{source}" / "model.safetensors"
        return _train(context, name, cases[name], half, {**batch, "pretrained": str(before)})

    return _per_domain(context, train)


def _per_domain(context: Any, train: Callable[[str, Mapping[str, Sequence[Case]]], Any]) -> dict[str, Any]:
    """Train for each domain, evaluate on its held-out cases."""
    names = assign_domains([*context.training_cases, *context.held_out_cases], context.config.domain_pattern)
    training = _by_domain([case for case in context.training_cases if case.label is not None], names)
    held_out = _by_domain(context.held_out_cases, names)
    if unlearnt := [name for name in held_out if name not in training]:
        raise MedsegError(
            f"held-out cases are of domain {', '.join(unlearnt)}, of which no labelled case trains; raise --labelled"
        )
    results: dict[str, Any] = {}
    for name in training:
        predictor = train(name, training)
        if name in held_out:
            results |= replace(context, held_out_cases=tuple(held_out[name])).evaluate(predictor)
    return {"cases": results, "iterations": context.iterations}


def _batch(context: Any, domains: int) -> dict[str, int]:
    """As many slices in a step as the joint arms have of all domains."""
    return {"domain_batch": context.config.domain_batch * domains}


def _train(context: Any, name: str, cases: Sequence[Case], iterations: int, more: Mapping[str, Any]) -> Any:
    """Train on the cases of one domain, with a registry of its own."""
    return context.train({"domains": {}, "iterations": iterations, **more}, name, cases=tuple(cases))


def _by_domain(cases: Sequence[Case], names: Mapping[str, str]) -> dict[str, list[Case]]:
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(names[case.id], []).append(case)
    return groups
