"""Domains that are added to a trained model: what is kept of it, and where a new slot starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medseg.domains import Domain
from medseg.files import read_json
from medseg.methods.base import TrainingSet
from medseg.methods.multidomain.config import MultiDomainConfig
from medseg.networks.domain_norm import copy_slot, slot_key

if TYPE_CHECKING:
    from medseg.methods.multidomain.method import MultiDomain

log = logging.getLogger(__name__)


def prepare_config(config: MultiDomainConfig, found: Mapping[str, Any]) -> MultiDomainConfig:
    """Put the domains of the model in `init` before those found in the data; `added` are the new ones.

    Domains of the old model keep their entry; labels that are new in one of them come after its own, but for those that
    belong to another old domain.
    """
    before = _domains_of_init(config)
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
    added = tuple(name for name in found if name not in before) if before else ()
    if added:
        log.info("added to %s: %s", ", ".join(before), ", ".join(added))
    return config.with_overrides({"domains": domains, "added": added})


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


def _domains_of_init(config: MultiDomainConfig) -> dict[str, Any]:
    """Domains of the model that the run starts from, their labels by name; {} where it is another kind of file."""
    if not config.init:
        return {}
    file = Path(config.init)
    about = read_json((file if file.is_dir() else file.parent) / "config.json", default={}) or {}
    if about.get("method") != "multidomain":
        return {}
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
