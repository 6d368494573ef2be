"""Joint phantoms: three joints with their own bones, contrast and noise, one bone of which two joints share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medseg.errors import MedsegError
from medseg.files import write_json
from medseg.phantoms.study import write_grid


@dataclass(frozen=True)
class Joint:
    """One kind of joint.

    Attributes:
        bones: name -> centre (share of the field of view from its middle) and radii (shares) in the plane.
        bone: intensity of bone.
        tissue: intensity of what lies around it; brighter than bone or darker, so that no threshold fits all joints.
        noise: standard deviation.
    """

    bones: Mapping[str, tuple[tuple[float, float], tuple[float, float]]]
    bone: float
    tissue: float
    noise: float


JOINTS: Mapping[str, Joint] = {
    "ankle": Joint({"tibia": ((0.0, 0.22), (0.13, 0.25)), "talus": ((0.02, -0.2), (0.2, 0.13))}, 180.0, 90.0, 12.0),
    "knee": Joint({"femur": ((0.0, 0.24), (0.2, 0.22)), "tibia": ((0.0, -0.24), (0.17, 0.22))}, 70.0, 140.0, 10.0),
    "shoulder": Joint({"humerus": ((0.12, -0.05), (0.2, 0.24))}, 150.0, 110.0, 14.0),
}


def make_joint(
    name: str, seed: int, shape: tuple[int, int, int] = (48, 40, 12)
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Draw one joint; equal arguments give an equal phantom.

    Args:
        name: one of `JOINTS`.
        seed: of pose, size, noise.
        shape: voxels along each axis, slices last.

    Returns:
        Image (*shape) in about 0..255 and mask (*shape), values in the order of the joint's bones from 1.

    Raises:
        MedsegError: no such joint.
    """
    if name not in JOINTS:
        raise MedsegError(f"there is no joint {name!r}; known: {', '.join(JOINTS)}")
    joint = JOINTS[name]
    rng = np.random.default_rng([seed, *name.encode()])
    x, y, z = np.meshgrid(*(np.linspace(-0.5, 0.5, n) for n in shape), indexing="ij")
    shift, turn = rng.uniform(-0.06, 0.06, size=2), rng.uniform(-0.2, 0.2)
    u, v = np.cos(turn) * x - np.sin(turn) * y - shift[0], np.sin(turn) * x + np.cos(turn) * y - shift[1]
    mask = np.zeros(shape, np.uint8)
    for value, (centre, radii) in enumerate(joint.bones.values(), start=1):
        wide, high = np.array(radii) * rng.uniform(0.85, 1.15, size=2)
        inside = ((u - centre[0]) / wide) ** 2 + ((v - centre[1]) / high) ** 2 + (z / 0.55) ** 2 < 1
        mask[inside & (mask == 0)] = value
    image = np.where(mask > 0, joint.bone, joint.tissue) + 25 * gaussian_filter(rng.normal(size=shape), 3) * 3
    image[(u**2 + v**2) > 0.23] = 20  # air
    image = gaussian_filter(image, 0.6) + rng.normal(scale=joint.noise, size=shape)
    return np.clip(image, 0, 255).astype(np.float32), mask


def write_joints(folder: Path, count: int = 4, shape: tuple[int, int, int] = (48, 40, 12)) -> list[Path]:
    """Write one plain data set per joint, `count` subjects each, with its own `labels.json`.

    Returns:
        Their folders; a tibia is label 1 in the ankle and label 2 in the knee.
    """
    folders = []
    for name, joint in JOINTS.items():
        for index in range(count):
            image, mask = make_joint(name, index, shape)
            for kind, values in (("images", image), ("labels", mask)):
                write_grid(Path(folder) / name / kind / f"{name}_{index:02d}.nii.gz", values, np.eye(4))
        write_json(Path(folder) / name / "labels.json", {bone: i for i, bone in enumerate(joint.bones, start=1)})
        folders.append(Path(folder) / name)
    return folders
