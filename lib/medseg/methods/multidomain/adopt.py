"""Domains that are added to a trained model: what is kept of it, and where a new slot starts."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medseg.cases import Case
from medseg.domains import Domain, assign_domains, stated_domain
from medseg.files import read_json
from medseg.methods.base import TrainingSet
from medseg.methods.multidomain.config import MultiDomainConfig
from medseg.methods.multidomain.network import POOLED
from medseg.networks.domain_norm import copy_slot, slot_key

if TYPE_CHECKING:
    from medseg.methods.multidomain.method import MultiDomain

log = logging.getLogger(__name__)


def prepare_config(config: MultiDomainConfig, found: Mapping[str, Any], cases: Sequence[Case]) -> MultiDomainConfig:
    """Put the domains of the model in `init` before those found in the data; `added` are the new ones.

    Domains of the old model keep their entry; labels that are new in one of them come after its own, but for those that
    belong to another old domain. What was inferred from few cases may have another name now (`find_heirs`).

    Args:
        config: settings of the run.
        found: domains of the data.
        cases: the data.
    """
    before = _domains_of_init(config)
    heirs = find_heirs(before, found, cases, config.domain_pattern)
    for name, past in heirs.items():
        log.info("domain %s continues %s", name, past)
    before = {name: value for name, value in before.items() if name not in heirs.values()}
    domains = {name: dict(value) for name, value in before.items()}
    for name, value in found.items():
        if name not in before:
            domains[name] = dict(value)
            continue
        old, new = Domain.from_dict(name, before[name]), Domain.from_dict(name, value)
        elsewhere = {label for other, entry in before.items() if other != name for label in entry["labels"]}
        strays = {label for label in new.labels if label in elsewhere and label not in old.labels}
        for label in strays:
            log.warning("label %s belongs to another domain than %s; its cases are refused", label, name)
        labels = tuple(dict.fromkeys([*old.labels, *(label for label in new.labels if label not in strays)]))
        values = {key: label for key, label in new.values.items() if label not in strays}
        domains[name] = replace(old, labels=labels, values={**old.values, **values}).to_dict()
    added = tuple(name for name in found if name not in before and name not in heirs) if before or heirs else ()
    if added:
        log.info("added to %s: %s", ", ".join([*before, *heirs]), ", ".join(added))
    return config.with_overrides({"domains": domains, "added": added, "heirs": heirs})


def find_heirs(
    before: Mapping[str, Any], found: Mapping[str, Any], cases: Sequence[Case], pattern: str
) -> dict[str, str]:
    """Domains of the data that go on with an old one of another name: domain -> old domain.

    With its second case a file name's prefix or a tag becomes a domain, and the case that stood for it until then
    leaves the domain that is called after the data set (and the other way round, when a case is taken away). Without
    this rule the old name would stay behind as a domain of which no case can be rehearsed.

    A domain that nobody stated is the heir of an old one that has no case any more, if one of the two is an alias of
    the other, or if the old one held what nothing but the data set told apart. Several may inherit from one.
    """
    names = assign_domains(cases, pattern)
    result = {}
    for name in found:
        own = [case for case in cases if names[case.id] == name]
        if name in before or any(stated_domain(case) for case in own):
            continue
        for old in (old for old in before if old not in found):
            is_alias = name in before[old]["aliases"] or old in found[name]["aliases"]
            if is_alias or all(case.dataset == old for case in own):
                result[name] = old
                break
    return result


def adopt_domains(method: MultiDomain, training: TrainingSet) -> None:
    """Start the slots of added domains from the slots of their nearest old domain. Done once in a run, then kept."""
    network = method.network
    for name in method.config.added:
        done = network.get_buffer(f"adopted_{slot_key(name)}")
        if bool(done) or not method.config.domain_layers:
            continue
        nearest = nearest_domain(method, training, name)
        log.info("domain %s starts from the slot of %s", name, nearest)
        copy_slot(network, nearest, name)
        done.fill_(1)


@torch.no_grad()
def nearest_domain(method: MultiDomain, training: TrainingSet, name: str) -> str:
    """The old domain whose training images are nearest to those of a new one, by the classifier's embedding."""
    classifier = method.network.classifier
    device = next(classifier.parameters()).device
    distances = dict.fromkeys(method.old_domains, 0.0)
    for case in training.cases:
        loaded = training.load(case)
        if loaded["domain"] == name:
            embedding = classifier.embed(loaded["views"].to(device)).mean(dim=0)
            for domain in distances:
                distances[domain] += classifier.distance(domain, embedding)
    return min(distances, key=lambda domain: distances[domain])


def inherit_weights(method: MultiDomain, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of the model in `init` under this network's domains and for this network's classes.

    Heirs take everything that belonged to the domain they continue. Layers that have a row for each class keep those of
    the labels that both models know, by name; rows of new labels are those of this network.

    Args:
        method: with its network, which stays as it is.
        given: name -> tensor of the file.
    """
    tensors = dict(given)
    for name, old in method.config.heirs.items():
        pattern = re.compile(rf"(?<![^._]){re.escape(slot_key(old))}(?![^.])")
        tensors |= {pattern.sub(slot_key(name), key): value for key, value in given.items() if pattern.search(key)}
    before, own = _labels_of_init(method.config), method.network.state_dict()
    for head, labels in method.labels_by_head().items():
        was = before.get(method.config.heirs.get(head, head), labels)
        pairs = [(labels.index(label), was.index(label)) for label in labels if label in was]
        rows, sources = zip((0, 0), *((1 + to, 1 + source) for to, source in pairs), strict=True)
        for key, axis in _class_layers(head).items():
            if was != labels and key in own and key in tensors:
                chosen = tensors[key].to(own[key]).index_select(axis, torch.tensor(sources))
                tensors[key] = own[key].clone().index_copy_(axis, torch.tensor(rows), chosen)
    return tensors


def _class_layers(head: str) -> dict[str, int]:
    """Tensors that have an entry for each class of a head, and along which axis."""
    key = slot_key(head)
    outer = (f"heads.{key}", f"prior.outputs.{key}")
    return {f"{name}.{part}": 0 for name in outer for part in ("weight", "bias")} | {f"prior.inputs.{key}.weight": 1}


def _labels_of_init(config: MultiDomainConfig) -> dict[str, tuple[str, ...]]:
    """Labels of every head of the model that the run starts from, in the order of its classes."""
    about = _model_of_init(config)
    domains = {name: tuple(value["labels"]) for name, value in _domains_of_init(config).items()}
    numbers: Mapping[str, int] = about.get("labels", {})
    return {**domains, POOLED: tuple(sorted(numbers, key=lambda name: numbers[name]))} if about else {}


def _domains_of_init(config: MultiDomainConfig) -> dict[str, Any]:
    """Domains of the model that the run starts from, their labels by name; {} where it is another kind of file."""
    about = _model_of_init(config)
    numbers = {str(number): name for name, number in about.get("labels", {}).items()}
    domains: dict[str, Any] = about.get("config", {}).get("domains", {})
    return {
        name: {
            **value,
            "labels": [numbers.get(label, label) for label in value["labels"]],
            "values": {key: numbers.get(label, label) for key, label in value["values"].items()},
        }
        for name, value in domains.items()
    }


def _model_of_init(config: MultiDomainConfig) -> dict[str, Any]:
    """What the model in `init` says of itself; {} where it is another kind of file, or of another method."""
    if not config.init:
        return {}
    file = Path(config.init)
    about = read_json((file if file.is_dir() else file.parent) / "config.json", default={}) or {}
    return about if about.get("method") == "multidomain" else {}
