from __future__ import annotations

import pytest

from medseg.acquisition.strategies import Candidate, by_score, diverse, first, random_order, stratified, weakest_first


def ids(scored: list) -> list[str]:
    return [s.id for s in scored]


def test_first_is_the_order_of_names() -> None:
    assert ids(first([Candidate("b"), Candidate("a"), Candidate("c")])) == ["a", "b", "c"]


def test_random_order_is_stable_and_depends_on_the_seed() -> None:
    images = [Candidate(f"i{n}") for n in range(20)]

    order = ids(random_order(images, seed=1))

    assert order == ids(random_order(images[::-1], seed=1))
    assert order != ids(random_order(images, seed=2))
    assert order != ids(first(images))


def test_random_order_of_the_rest_does_not_move_when_an_image_is_labelled() -> None:
    images = [Candidate(f"i{n}") for n in range(10)]
    order = ids(random_order(images))

    assert ids(random_order([c for c in images if c.id != order[3]])) == order[:3] + order[4:]


def test_by_score_puts_high_values_first_and_unscored_last() -> None:
    images = [Candidate("low", 0.1, "x"), Candidate("none"), Candidate("high", 0.9, "branches disagree, 0.90")]

    ranked = by_score(images)

    assert ids(ranked) == ["high", "low", "none"]
    assert ranked[0].why == "branches disagree, 0.90"
    assert "not scored" in ranked[2].why


def test_by_score_ranks_zero_above_unscored() -> None:
    assert ids(by_score([Candidate("none"), Candidate("zero", 0.0)])) == ["zero", "none"]


def test_diverse_takes_the_far_image_before_the_twin_of_the_best() -> None:
    images = [
        Candidate("best", 0.9, "a", (0.0, 0.0)),
        Candidate("twin", 0.89, "a", (0.01, 0.0)),
        Candidate("far", 0.5, "a", (1.0, 1.0)),
        Candidate("near", 0.4, "a", (0.1, 0.0)),
    ]

    assert ids(by_score(images))[:2] == ["best", "twin"]
    assert ids(diverse(images))[:2] == ["best", "far"]


def test_diverse_keeps_away_from_labelled_images() -> None:
    images = [Candidate("a", 0.9, "", (0.0,)), Candidate("b", 0.8, "", (5.0,))]

    assert ids(diverse(images, covered=[(0.0,)], weight=2.0)) == ["b", "a"]


def test_diverse_with_weight_zero_is_the_order_of_values() -> None:
    images = [Candidate(f"i{n}", value=n / 10, features=(float(n % 3),)) for n in range(10)]

    assert ids(diverse(images, weight=0.0)) == ids(by_score(images))


@pytest.mark.parametrize("features", [(), (1.0,)])
def test_diverse_returns_every_image_once(features: tuple[float, ...]) -> None:
    images = [Candidate(f"i{n}", n / 100 if n % 2 else None, "", features) for n in range(120)]

    assert sorted(ids(diverse(images))) == sorted(c.id for c in images)


def test_strategies_take_an_empty_pool() -> None:
    assert first([]) == random_order([]) == by_score([]) == diverse([]) == []


def test_stratified_visits_every_stratum_and_then_follows_their_sizes() -> None:
    images = [Candidate(f"a{n}", stratum="a") for n in range(8)] + [Candidate(f"b{n}", stratum="b") for n in range(4)]

    ranked = stratified(images, seed=3)

    assert sorted(ids(ranked)) == sorted(c.id for c in images)
    assert {i[0] for i in ids(ranked)[:2]} == {"a", "b"}
    assert [sum(i[0] == "b" for i in ids(ranked)[:n]) for n in (3, 6, 9, 12)] == [1, 2, 3, 4]
    within = [i for i in ids(ranked) if i[0] == "a"]
    assert within == [i for i in ids(random_order(images, seed=3)) if i[0] == "a"]
    assert ranked[-1].why in ("random within 'a', of which 7 of 8 are labelled",
                              "random within 'b', of which 3 of 4 are labelled")  # fmt: skip


def test_stratified_starts_where_least_is_labelled() -> None:
    images = [Candidate(f"a{n}", stratum="a") for n in range(4)] + [Candidate("b0", stratum="b")]

    assert ids(stratified(images, ["b"] * 9))[-1] == "b0"
    assert stratified(images, ["a"])[0].id == "b0"


def test_stratified_without_strata_is_random() -> None:
    images = [Candidate(f"i{n}") for n in range(6)]

    assert stratified(images, ["", ""], seed=2) == random_order(images, seed=2)
    alone = [Candidate(c.id, stratum=c.id) for c in images]
    assert stratified(alone, seed=2) == random_order(images, seed=2)  # "0 of 1" would tell nobody anything


def test_noisy_group_does_not_take_all_requests() -> None:
    noisy = [Candidate(f"n{i}", 0.99 - i / 100, group="noisy") for i in range(5)]
    calm = [Candidate(f"c{i}", 0.1 + i / 100, group="calm") for i in range(2)]

    ranked = by_score([*noisy, *calm, Candidate("x", None, group="calm")])

    assert [s.id for s in ranked] == ["n0", "c1", "n1", "c0", "n2", "n3", "n4", "x"]
    assert [s.value for s in ranked[:2]] == [0.99, 0.11]


def test_images_of_no_known_domain_close_each_turn() -> None:
    pool = [Candidate("u1", 0.9, "unsure"), Candidate("a1", 0.1, stratum="a"), Candidate("b1", 0.1, stratum="b")]

    ranked = weakest_first(pool, {"a": 0.9})

    assert [s.id for s in ranked] == ["b1", "a1", "u1"]
    assert ranked[2].why == "unsure"


def test_weakest_domain_is_served_first_and_the_others_in_turn() -> None:
    pool = [
        Candidate("a1", 0.9, "unsure", stratum="ankle"),
        Candidate("a2", 0.8, "unsure", stratum="ankle"),
        Candidate("k1", 0.1, "unsure", stratum="knee"),
        Candidate("k2", 0.2, "unsure", stratum="knee"),
        Candidate("h1", None, stratum="hip"),
    ]

    order = weakest_first(pool, {"ankle": 0.9, "knee": 0.6})

    assert [s.id for s in order] == ["h1", "k2", "a1", "k1", "a2"]
    assert order[1].why == "knee, quality 0.60: unsure"
    assert order[0].why.startswith("hip, no validation image")


def test_domain_whose_image_is_held_has_had_its_turn() -> None:
    pool = [Candidate("a1", 0.9, stratum="ankle"), Candidate("k1", 0.1, stratum="knee")]
    assert [s.id for s in weakest_first(pool, {"ankle": 0.9, "knee": 0.6}, held=["knee"])] == ["a1", "k1"]
