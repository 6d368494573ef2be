"""Spine phantoms: radiograph-like pictures of 17 vertebrae whose Cobb angles are known in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from medseg.errors import MedsegError
from medseg.files import write_atomically, write_text
from medseg.metrics.cobb import cobb_angles

VERTEBRAE = 17
Array = NDArray[np.float64]


class Spine(NamedTuple):
    """A phantom.

    Attributes:
        image: (x, y) uint8.
        corners: (17, 4, 2) in pixels: top-left, top-right, bottom-left, bottom-right.
        angles: degrees, in the challenge's order.
    """

    image: NDArray[np.uint8]
    corners: Array
    angles: tuple[float, float, float]


def make_spine(seed: int, shape: tuple[int, int] = (192, 512), tilts: Sequence[float] | None = None) -> Spine:
    """Draw one spine; equal arguments give an equal phantom.

    Args:
        seed: of shape, pose and noise.
        shape: (width, height) in pixels.
        tilts: tilt of each vertebra in degrees, from the top; None: drawn, one to three curves.

    Raises:
        MedsegError: not 17 tilts, one of them steeper than 60 degrees, or a picture that is too small.
    """
    rng = np.random.default_rng(seed)
    profile = random_tilts(rng) if tilts is None else np.asarray(tilts, dtype=np.float64)
    if profile.shape != (VERTEBRAE,) or np.abs(profile).max() > 60:
        raise MedsegError(f"a spine phantom needs {VERTEBRAE} tilts within 60 degrees, got {profile.round(1).tolist()}")
    if min(shape[0], shape[1] // 2) < 64:
        raise MedsegError(f"a spine phantom of {shape[0]} x {shape[1]} pixels is too small; give at least 64 x 128")
    corners = place_vertebrae(profile, shape, rng)
    return Spine(_draw(corners, shape, rng), corners, cobb_angles(corners, shape[1]).angles)


def random_tilts(rng: np.random.Generator) -> Array:
    """(17,) degrees: a sum of one to three smooth curves."""
    place = np.linspace(0, 1, VERTEBRAE)
    waves = [
        rng.uniform(4, 22) * np.sin(np.pi * (rng.uniform(0.7, 2.4) * place + rng.uniform(0, 2)))
        for _ in range(int(rng.integers(1, 4)))
    ]
    return np.clip(np.sum(waves, axis=0) + rng.normal(0, 1.0, VERTEBRAE), -50, 50)


def place_vertebrae(profile: Array, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """(17, 4, 2) rectangles tilted by `profile`, stacked along the spine and centred in the picture.

    The mid-line of a rectangle has its tilt, so the angle between two vertebrae is the difference of their tilts.
    """
    width, height = shape
    sizes = np.linspace(0.7, 1.25, VERTEBRAE)
    step = 0.9 * height / sizes.sum()
    down = np.stack([-np.sin(np.radians(profile)), np.cos(np.radians(profile))], axis=1)
    along = np.cumsum(
        np.vstack([np.zeros(2), (sizes[:-1] + sizes[1:])[:, None] / 2 * (down[:-1] + down[1:]) / 2]), axis=0
    )
    scale = min(step, 0.9 * height / (np.ptp(along[:, 1]) + 1), 0.6 * width / max(np.ptp(along[:, 0]), 1e-6))
    centres = along * scale
    middle = (centres.min(axis=0) + centres.max(axis=0)) / 2
    centres += np.array([width, height]) / 2 - middle + rng.uniform(-0.01, 0.01, 2) * height
    half_height = 0.36 * scale * sizes
    half_width = np.minimum(half_height * rng.uniform(1.6, 2.0), 0.2 * width)
    right = np.stack([down[:, 1], -down[:, 0]], axis=1)
    x, y = right * half_width[:, None], down * half_height[:, None]
    return np.stack([centres - x - y, centres + x - y, centres - x + y, centres + x + y], axis=1)


def write_spines(folder: Path, count: int, seed: int = 0, shape: tuple[int, int] = (192, 512)) -> Path:
    """Write a plain data set: `images/` as PNG and `labels.csv` with case, angles and 68 landmarks."""
    header = ["image", "case", *(f"angle_{k}_deg" for k in (1, 2, 3))]
    header += [f"{axis}{k}" for k in range(4 * VERTEBRAE) for axis in "xy"]
    rows = [",".join(header)]
    for index in range(count):
        spine, name = make_spine(1000 * seed + index, shape), f"spine_{index:03d}.png"
        write_atomically(Path(folder) / "images" / name, Image.fromarray(spine.image.T).save)
        numbers = [*spine.angles, *spine.corners.reshape(-1)]
        rows.append(",".join([name, f"p{index}", *(f"{number:.3f}" for number in numbers)]))
    write_text(Path(folder) / "labels.csv", "\n".join(rows) + "\n")
    return Path(folder)


def _draw(corners: Array, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    width, height = shape
    x, y = np.meshgrid(np.arange(width), np.arange(height), indexing="ij")
    middle = np.interp(np.arange(height), corners.mean(axis=1)[:, 1], corners.mean(axis=1)[:, 0])
    body = 70 + 50 * np.exp(-(((x - middle[None]) / (0.25 * width)) ** 2)) + 20 * np.cos(3 * y / height)
    bones = Image.new("L", (width, height))
    pencil = ImageDraw.Draw(bones)
    for level in corners[2:13].mean(axis=1):  # ribs: arcs to both sides, of the vertebrae's brightness
        for side in (-1, 1):
            box = [level[0] - 0.4 * width, level[1], level[0] + 0.4 * width, level[1] + 0.08 * height]
            pencil.arc(box, 180 if side < 0 else 270, 270 if side < 0 else 360, fill=25, width=max(2, height // 160))
    for quad in corners:
        ring = [(float(a), float(b)) for a, b in quad[[0, 1, 3, 2]]]
        pencil.polygon(ring, fill=int(rng.integers(55, 75)), outline=95)
    picture = body + gaussian_filter(np.asarray(bones, dtype=np.float64).T, 0.8)
    picture += rng.normal(0, 6, picture.shape) + gaussian_filter(rng.normal(0, 60, picture.shape), 6)
    return np.clip(picture, 0, 255).astype(np.uint8)
