"""Domain-specific batch norm for any network: every batch norm gets one slot per domain.

A network is used through a view of one domain: a light copy of its modules that shares all parameters and buffers and
in which each batch norm is that domain's slot. A view belongs to the call that made it, so threads with different
domains never meet, and there is no current domain that could be wrong.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from medseg.errors import NotFoundError


class DomainNorm(nn.Module):
    """Batch norms of all domains at one place of a network.

    Source: Chang et al., Domain-specific batch normalization, CVPR 2019, arXiv 1906.03950; card of the multi-domain
    method, sec. 4. Deviation: slots go by name, not by number, so that a list of domains in another order loads right.

    Args:
        norm: the batch norm that every slot starts from, statistics included.
        domains: names of the domains.
    """

    def __init__(self, norm: _BatchNorm, domains: Iterable[str]) -> None:
        super().__init__()
        self.domains = tuple(domains)
        self.slots = nn.ModuleDict({slot_key(name): copy.deepcopy(norm) for name in self.domains})

    def slot(self, domain: str) -> nn.Module:
        """The batch norm of a domain.

        Raises:
            NotFoundError: there is no such slot.
        """
        key = slot_key(domain)
        if key not in self.slots:
            raise NotFoundError(f"there is no domain {domain!r}; this network knows {', '.join(self.domains)}")
        return self.slots[key]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Refused: which domain `x` belongs to is said by `domain_view`."""
        raise RuntimeError("a network with domain-specific norms is called through domain_view(network, domain)")


class _Tap(nn.Module):
    """Passes a module's output on and keeps it."""

    def __init__(self, inner: nn.Module, name: str, store: dict[str, Any]) -> None:
        super().__init__()
        self.inner, self.name, self.store = inner, name, store
        self.training = inner.training  # not by `train`, which would change the slots that are shared

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """The inner module's output."""
        output = self.store[self.name] = self.inner(*arguments, **options)
        return output


def slot_key(domain: str) -> str:
    """Name of a domain as a key of `nn.ModuleDict`, which takes no dots and none of its own attributes' names.

    Two names never have one key: `_` becomes `__`, what is no letter or digit its code point between `_`.
    """
    return "d_" + re.sub(r"[\W_]", lambda found: "__" if found[0] == "_" else f"_{ord(found[0]):x}_", domain)


def without_slot(name: str) -> str:
    """Name of a tensor as it was before `convert_batch_norm`: `a.slots.d_knee.weight` was `a.weight`."""
    before, slots, after = name.partition(".slots.")
    return f"{before}.{after.partition('.')[2]}" if slots else name


def convert_batch_norm(network: nn.Module, domains: Sequence[str]) -> nn.Module:
    """Replace every batch norm by a `DomainNorm` whose slots all equal it.

    Args:
        network: changed in place; load pretrained weights before.
        domains: names of the domains, at least one.

    Returns:
        The network, or the `DomainNorm` where the network itself is a batch norm.
    """
    if isinstance(network, _BatchNorm):
        return DomainNorm(network, domains)
    if not isinstance(network, DomainNorm):
        for name, child in network.named_children():
            setattr(network, name, convert_batch_norm(child, domains))
    return network


def domain_view(
    network: nn.Module, domain: str | None, taps: Sequence[str] = (), store: dict[str, Any] | None = None
) -> nn.Module:
    """The network as one domain sees it.

    Args:
        network: with or without `DomainNorm`s; never changed.
        domain: name of a domain; None only where the network has no `DomainNorm`.
        taps: dotted names of sub-modules whose output is kept in `store` in every call of the view.
        store: where to.

    Raises:
        NotFoundError: there is no such domain.
        ValueError: there is no such sub-module.
    """
    names = {name for name, _ in network.named_modules()}
    for name in taps:
        if name not in names:
            raise ValueError(f"{type(network).__name__} has no sub-module {name!r} to tap")
    return _view(network, "", domain, {name: {} if store is None else store for name in taps})


def domain_slots(network: nn.Module, domain: str) -> list[nn.Module]:
    """All batch norms of a domain."""
    return [module.slot(domain) for module in network.modules() if isinstance(module, DomainNorm)]


def copy_slot(network: nn.Module, source: str, target: str) -> None:
    """Give all slots of `target` the weights and statistics of those of `source`."""
    for module in network.modules():
        if isinstance(module, DomainNorm):
            module.slot(target).load_state_dict(module.slot(source).state_dict())


def added_parameters(network: nn.Module, domain: str) -> int:
    """Number of parameters that a domain adds by its batch norms."""
    return sum(p.numel() for slot in domain_slots(network, domain) for p in slot.parameters())


def _view(module: nn.Module, name: str, domain: str | None, taps: Mapping[str, dict[str, Any]]) -> nn.Module:
    if isinstance(module, DomainNorm):
        if domain is None:
            raise NotFoundError("this network has domain-specific norms; name a domain")
        return module.slot(domain)
    children = {
        key: _view(child, f"{name}.{key}" if name else key, domain, taps) if child is not None else None
        for key, child in module._modules.items()
    }
    result = module
    if any(children[key] is not module._modules[key] for key in children):
        result = module.__class__.__new__(module.__class__)
        result.__dict__ = {**module.__dict__, "_modules": children}  # parameters and buffers stay the same objects
    return _Tap(result, name, taps[name]) if name in taps else result
