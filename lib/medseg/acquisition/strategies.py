"""Query strategies: the order in which unlabelled images are offered. Pure functions; leases and files are elsewhere.

Every strategy takes candidates and returns all of them, best first, each with a reason that the annotator reads. Images
without a score come after those with one, in the stable random order of `random_order`.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

DIVERSE_PICKS = 50  # ours: farthest-first is quadratic; nobody labels more than 50 images between two scorings
RANDOM_WHY = "random order"
UNSCORED_WHY = "not scored yet, random order"


@dataclass(frozen=True)
class Candidate:
    """An unlabelled image; `value` is None where it has no score of the present model.

    Attributes:
        stratum: what it shares with other images (a domain, a patient), for `stratified`.
        group: images among which values are comparable (an imaging domain).
    """

    id: str
    value: float | None = None
    why: str = ""
    features: tuple[float, ...] = ()
    stratum: str = ""
    group: str = ""


@dataclass(frozen=True)
class Scored:
    """A place in the ranking: the image, the value it was ranked by, and the reason for the annotator."""

    id: str
    value: float | None
    why: str


def first(candidates: Sequence[Candidate]) -> list[Scored]:
    """By name: for reading through a study in order."""
    return [Scored(c.id, None, "next in the order of names") for c in sorted(candidates, key=lambda c: c.id)]


def random_order(candidates: Sequence[Candidate], seed: int = 0, why: str = RANDOM_WHY) -> list[Scored]:
    """By a hash of seed and id: random to the eye, and the same after a restart or when images come and go."""
    return [Scored(c.id, None, why) for c in sorted(candidates, key=lambda c: _draw(c.id, seed))]


def stratified(candidates: Sequence[Candidate], covered: Sequence[str] = (), seed: int = 0) -> list[Scored]:
    """Random, but spread over strata: the next image is of the stratum of which the smallest share is labelled.

    Every stratum gets its first label before any gets a second one; from then on labels follow the strata's sizes
    (Adams' method of apportionment). Within a stratum, and between equal shares, the stable random order decides. With
    one image per stratum, or one stratum, this is `random_order`.

    Args:
        candidates: images with their `stratum`.
        covered: the stratum of each labelled image.
        seed: of the stable random order.
    """
    order = random_order(candidates, seed)
    stratum = {c.id: c.stratum for c in candidates}
    done = Counter(covered)
    waiting: dict[str, deque[tuple[int, Scored]]] = defaultdict(deque)
    for place, scored in enumerate(order):
        waiting[stratum[scored.id]].append((place, scored))
    total = {name: len(queue) + done[name] for name, queue in waiting.items()}
    heap = [(done[name] / total[name], queue[0][0], name) for name, queue in waiting.items()]
    heapq.heapify(heap)
    ranked = []
    while heap:
        _, _, name = heapq.heappop(heap)
        _, scored = waiting[name].popleft()
        share = f"random within {name!r}, of which {done[name]} of {total[name]} are labelled"
        told = 1 < total[name] < len(candidates) + len(covered)  # alone, or all there is: no stratum worth a word
        ranked.append(replace(scored, why=share) if told else scored)
        done[name] += 1
        if waiting[name]:
            heapq.heappush(heap, (done[name] / total[name], waiting[name][0][0], name))
    return ranked


def by_score(candidates: Sequence[Candidate], seed: int = 0) -> list[Scored]:
    """Highest value first; equal values in the stable random order, then the images without a score.

    Of several groups, whose values do not compare, the first images are the highest of each, then the second highest
    of each: a group whose values are all high does not take all requests.
    """
    scored = [c for c in candidates if c.value is not None]
    rest = [c for c in candidates if c.value is None]
    scored.sort(key=lambda c: (-float(c.value or 0.0), _draw(c.id, seed)))
    seen: Counter[str] = Counter()
    place = {}
    for candidate in scored:
        place[candidate.id] = seen[candidate.group]
        seen[candidate.group] += 1
    scored.sort(key=lambda c: place[c.id])
    return [Scored(c.id, c.value, c.why) for c in scored] + random_order(rest, seed, UNSCORED_WHY)


def weakest_first(
    candidates: Sequence[Candidate], standing: Mapping[str, float], held: Sequence[str] = (), seed: int = 0
) -> list[Scored]:
    """One image of every stratum in turn, beginning with the stratum that the model is worst at; by score within.

    So the noisiest domain does not take all requests, and the one that needs labels most gets the first.

    Args:
        candidates: images with their `stratum`; values need be comparable only within it.
        standing: quality of the model on each stratum's validation images; a stratum without any counts as worst, the
            images of no known stratum ("") as best.
        held: stratum of each image that an annotator holds; such a stratum has had a turn.
        seed: of the stable random order.
    """
    turns = Counter(held)
    order = by_score(candidates, seed)
    stratum = {c.id: c.stratum for c in candidates}
    waiting: dict[str, deque[Scored]] = defaultdict(deque)
    for scored in order:
        waiting[stratum[scored.id]].append(scored)
    heap = [(turns[name], standing.get(name, -1.0 if name else math.inf), name) for name in waiting]
    heapq.heapify(heap)
    result = []
    while heap:
        turn, quality, name = heapq.heappop(heap)
        scored = waiting[name].popleft()
        known = f"quality {quality:.2f}" if name in standing else "no validation image"
        result.append(replace(scored, why=f"{name}, {known}: {scored.why}") if name else scored)
        if waiting[name]:
            heapq.heappush(heap, (turn + 1, quality, name))
    return result


def diverse(
    candidates: Sequence[Candidate], covered: Sequence[Sequence[float]] = (), weight: float = 1.0, seed: int = 0
) -> list[Scored]:
    """Farthest-first on features, weighed against the score.

    Picks one image after the other with the largest `rank of its value in [0, 1] + weight * distance / largest
    distance`, the distance being that to the nearest image already picked or labelled (core-set greedy of Sener and
    Savarese, ICLR 2018, with the value added: ours). Without features this is `by_score`.

    Args:
        candidates: images; only those with a value and features of the common length take part, the others follow.
        covered: features of images that are labelled.
        weight: how much distance counts against the value; 0 is `by_score`.
        seed: of the stable random order.
    """
    order = by_score(candidates, seed)
    by_id = {c.id: c for c in candidates}
    length = max((len(c.features) for c in candidates), default=0)
    pool = [s.id for s in order if s.value is not None and len(by_id[s.id].features) == length]
    if not length or len(pool) < 2:
        return order
    features = np.asarray([by_id[i].features for i in pool], dtype=np.float64)
    ranks = np.linspace(1.0, 0.0, len(pool))  # the pool is in order of value
    distances = _distance_to([f for f in covered if len(f) == length], features)
    picks: list[int] = []
    for _ in range(min(len(pool), DIVERSE_PICKS)):
        finite = np.where(np.isinf(distances), 1.0, distances)
        gain = ranks + weight * finite / max(float(finite.max()), 1e-12)
        gain[picks] = -np.inf
        picks.append(int(gain.argmax()))
        distances = np.minimum(distances, np.linalg.norm(features - features[picks[-1]], axis=1))
    chosen = {pool[p] for p in picks}
    places = {scored.id: scored for scored in order}
    front = [places[pool[p]] for p in picks]
    told = 0 if covered else 1  # the first pick is unlike nothing
    front[told:] = [replace(scored, why=f"{scored.why}; unlike the images already chosen") for scored in front[told:]]
    return front + [scored for scored in order if scored.id not in chosen]


def _distance_to(covered: Sequence[Sequence[float]], features: np.ndarray) -> np.ndarray:
    """Distance of each row of features (n, d) to the nearest covered one; infinite where nothing is covered: (n,)."""
    distances = np.full(len(features), np.inf)
    for row in covered:
        distances = np.minimum(distances, np.linalg.norm(features - np.asarray(row, dtype=np.float64), axis=1))
    return distances


def _draw(identifier: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{identifier}".encode()).digest()
