"""Which domain an image belongs to: what is known of it, what its looks say, and the doubt that is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai.data import MetaTensor

from medseg.cases import Case
from medseg.domains import SURE, Resolution
from medseg.errors import UnusableInputError
from medseg.methods.base import Sample
from medseg.methods.multidomain.classifier import Guess

if TYPE_CHECKING:
    from medseg.methods.multidomain.method import MultiDomain


def find_domain(method: MultiDomain, case: Case, image: MetaTensor) -> tuple[Resolution, Guess | None]:
    """What is known of the case, else the classifier's guess; it also judges what the data set alone says.

    A case with a mask is one to learn from or to compare with, and is not judged.

    Raises:
        UnusableInputError: the domain is unknown, and `unknown` is "refuse".
    """
    registry = method.registry
    found = registry.resolve(case)
    if found is None and len(registry.names) == 1:
        found = Resolution(registry.names[0], "only domain")
    if found is not None and (found.source in SURE or case.label is not None):
        return found, None
    guess = method.guess_domain(image, found.domain if found else None)
    if unsure(method, guess.confidence, guess.distance) and method.config.unknown == "refuse":
        raise UnusableInputError(
            f"the domain of {case.id} is unknown (nearest: {guess.domain}, {guess.confidence:.2f}); state one of "
            f"{', '.join(registry.names)}"
        )
    return Resolution(guess.domain, found.source if found else "classifier", guess.confidence), guess


def doubts(method: MultiDomain, loaded: Sample) -> tuple[str, ...]:
    """What is to be told of the choice of a loaded case's domain."""
    domain, source, confidence = (loaded[key] for key in ("domain", "source", "confidence"))
    if source in SURE:
        return ()
    if unsure(method, confidence, loaded["distance"]):
        return (
            f"the domain of this image is unknown; segmented as {domain} ({confidence:.2f}, by the {source}), state "
            f"one of {', '.join(method.registry.names)} if that is wrong",
        )
    return (f"domain {domain} was recognised automatically ({confidence:.2f})",) if source == "classifier" else ()


def unsure(method: MultiDomain, confidence: float, distance: float) -> bool:
    """Whether an image's domain counts as unknown."""
    return confidence < method.config.least_confidence or distance > 1
