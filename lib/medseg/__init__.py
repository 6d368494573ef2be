"""medseg: good segmentation models from a handful of labels, weak labels and a pile of unlabelled scans."""

from __future__ import annotations

__version__ = "0.1.0"
