from __future__ import annotations

from typing import Any

from medseg.server.tasks.auto_scoring import FULL_LOOK_EVERY, AutoScoring


class FakeTask:
    """A scoring task whose work the test sets."""

    def __init__(self, version: int | None, *due: str) -> None:
        self.version, self.images, self.asked = version, list(due), 0

    def due(self) -> list[str]:
        self.asked += 1
        return self.images if self.version else []

    def state(self) -> tuple[int | None, frozenset[str]]:
        return self.version, frozenset(self.images)


def watch(task: FakeTask, busy: list[bool]) -> tuple[AutoScoring, list[str]]:
    started: list[str] = []
    tasks: Any = {"caml": task}
    return AutoScoring(tasks, lambda: busy[0], started.append), started


def test_work_is_started_once_when_it_has_settled() -> None:
    auto, started = watch(FakeTask(1, "a", "b"), [False])

    assert auto.look() == []
    assert auto.look() == ["caml"]
    assert auto.look() == []
    assert started == ["caml"]


def test_nothing_to_do_starts_nothing() -> None:
    auto, started = watch(FakeTask(None, "a"), [False])
    for _ in range(3):
        auto.look()

    assert started == []


def test_a_growing_pool_is_scored_when_it_is_full() -> None:
    task = FakeTask(1)
    auto, started = watch(task, [False])
    for count in range(1, 4):
        task.images = [f"i{n}" for n in range(count)]
        auto.look()
    assert started == []

    auto.look()

    assert started == ["caml"]


def test_running_jobs_are_waited_for() -> None:
    busy = [True]
    auto, started = watch(FakeTask(1, "a"), busy)
    for _ in range(3):
        auto.look()
    assert started == []

    busy[0] = False
    auto.look()

    assert started == ["caml"]


def test_a_new_model_or_a_new_image_starts_again_but_a_failed_job_does_not() -> None:
    task = FakeTask(1, "a", "b")
    auto, started = watch(task, [False])
    for _ in range(4):
        auto.look()
    task.images = ["b"]  # the job scored one image and was stopped
    for _ in range(3):
        auto.look()
    assert len(started) == 1

    task.version = 2
    for _ in range(3):
        auto.look()
    assert len(started) == 2

    task.images = ["b", "new"]
    for _ in range(3):
        auto.look()
    assert len(started) == 3


def test_image_files_are_not_looked_at_every_time_while_nothing_changes() -> None:
    task = FakeTask(1)
    auto, started = watch(task, [False])
    for _ in range(FULL_LOOK_EVERY):
        auto.look()
    assert task.asked == 1

    auto.look()

    assert task.asked == 2
    assert started == []
