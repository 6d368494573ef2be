"""The output of a job, for people: MONAI Label keeps its last lines, with time stamps and a JSON of the result."""

from __future__ import annotations

import re
from collections.abc import Sequence

LOG_PREFIX = re.compile(r"^\[\d{4}-\d\d-\d\d [^\]]*\](?: \[[^\]]*\])* \([\w.]+:\d+\) - ")
EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt): ")
RESULT = "Result: "
"""Begins the line by which MONAI Label ends every job; what the task returned follows as JSON."""


def last_sentence(lines: Sequence[str]) -> str:
    """The last line that says something to people; empty where there is none.

    Lines of the log are preferred: what else a process prints at its end are warnings of libraries. Where nothing was
    logged (the job could not even start), the last line counts.
    """
    logged = [text for line in lines if (text := LOG_PREFIX.sub("", line)) != line and not text.startswith(RESULT)]
    plain = [line.strip() for line in lines if line.strip() and LOG_PREFIX.sub("", line) == line]
    if logged:
        return logged[-1].strip()
    return EXCEPTION.sub("", plain[-1]) if plain else ""
