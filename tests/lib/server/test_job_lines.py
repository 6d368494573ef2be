from __future__ import annotations

from medseg.server.job_lines import last_sentence

PREFIX = "[2026-11-22 07:14:21,260] [371] [MainThread] [INFO] "


def test_sentence_before_the_result_is_shown_without_its_stamp() -> None:
    lines = [
        PREFIX + "(medseg.training.gate:131) - comparing the candidate with the current model",
        PREFIX + "(medseg.server.tasks.train:147) - rejected: not better, 0.6861 against 0.7018 of version 2.",
        PREFIX + '(__main__:61) - Result: {"iteration": 150, "terms": {"loss": 1.36}}',
        "resource_tracker: There appear to be 1 leaked semaphore objects",
    ]

    assert last_sentence(lines) == "rejected: not better, 0.6861 against 0.7018 of version 2."


def test_job_that_could_not_start_shows_its_error() -> None:
    lines = [
        "Traceback (most recent call last):",
        '  File "app.py", line 1',
        "medseg.errors.MedsegError: labels are bad",
    ]

    assert last_sentence(lines) == "labels are bad"
    assert last_sentence([]) == ""
    assert last_sentence(["Result is ready"]) == "Result is ready"
