from __future__ import annotations

from pathlib import Path

import pytest

from medseg.acquisition.leases import LeaseBook
from medseg.acquisition.strategies import Scored


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book(tmp_path: Path, clock: Clock) -> LeaseBook:
    return LeaseBook(tmp_path / "leases.json", minutes=10, clock=clock)


def pool(*names: str) -> list[Scored]:
    return [Scored(name, 0.5, f"because of {name}") for name in names]


def taken(book: LeaseBook, ranked: list[Scored], client: str) -> str | None:
    lease = book.take(ranked, client)
    return lease.image if lease else None


def test_two_annotators_get_different_images(book: LeaseBook) -> None:
    assert taken(book, pool("a", "b"), "ann") == "a"
    assert taken(book, pool("a", "b"), "bob") == "b"


def test_everything_held_by_others_gives_none(book: LeaseBook) -> None:
    book.take(pool("a"), "ann")

    assert book.take(pool("a"), "bob") is None


def test_a_lease_ends_by_time(book: LeaseBook, clock: Clock) -> None:
    book.take(pool("a", "b"), "ann")
    clock.now += 10 * 60 + 1

    assert taken(book, pool("a", "b"), "bob") == "a"


def test_asking_again_skips_and_frees_the_image(book: LeaseBook) -> None:
    assert taken(book, pool("a", "b", "c"), "ann") == "a"
    assert taken(book, pool("a", "b", "c"), "ann") == "b"
    assert taken(book, pool("a", "b", "c"), "bob") == "a"


def test_skipped_images_come_back_when_nothing_else_is_left(book: LeaseBook) -> None:
    for expected in ("a", "b", "a", "b"):
        assert taken(book, pool("a", "b"), "ann") == expected


def test_annotators_without_a_name_do_not_get_the_same_image(book: LeaseBook) -> None:
    assert [taken(book, pool("a", "b", "c"), "") for _ in range(3)] == ["a", "b", "c"]


def test_a_labelled_image_is_no_longer_leased(book: LeaseBook) -> None:
    book.take(pool("a", "b"), "ann")
    book.release("a")

    assert book.of("a") is None
    assert taken(book, pool("b"), "ann") == "b"


def test_leases_survive_a_restart_with_their_reason(book: LeaseBook, clock: Clock) -> None:
    book.take(pool("a", "b"), "ann", strategy="caml")

    again = LeaseBook(book.path, minutes=10, clock=clock)

    lease = again.of("a")
    assert lease is not None
    assert (lease.client, lease.why, lease.value, lease.strategy) == ("ann", "because of a", 0.5, "caml")
    assert taken(again, pool("a", "b"), "bob") == "b"


def test_no_image_at_all(book: LeaseBook) -> None:
    assert book.take([], "ann") is None
    assert book.active() == []
