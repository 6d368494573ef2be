"""The table of methods: name -> where its class is. A new method adds its folder and one line here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from medseg.errors import NotFoundError

if TYPE_CHECKING:  # torch is loaded with the first method, not for a list of names
    from medseg.methods.base import Method

METHODS = {
    "caml": "medseg.methods.caml.method:CAML",
    "dram": "medseg.methods.dram.method:DRAM",
    "multidomain": "medseg.methods.multidomain.method:MultiDomain",
    "local_discrimination": "medseg.methods.local_discrimination.method:LocalDiscrimination",
    "seg4reg": "medseg.methods.seg4reg.method:Seg4Reg",
    "supervised": "medseg.methods.supervised.method:Supervised",
}


def method_class(name: str) -> type[Method]:
    """The class of a method, imported on first use.

    Raises:
        NotFoundError: no such method; names the known ones.
    """
    if name not in METHODS:
        raise NotFoundError(f"there is no method {name!r}; known methods: {', '.join(METHODS)}")
    module, _, attribute = METHODS[name].partition(":")
    found: type[Method] = getattr(import_module(module), attribute)
    return found
