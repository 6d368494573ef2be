"""`python -m medseg ...`, which is what torchrun starts."""

from __future__ import annotations

from medseg.cli import main

main()
