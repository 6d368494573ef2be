"""Embedding and regions of images as pictures, side by side.

    python benchmarks/local_discrimination/embeddings.py --model RUN --out maps.png IMAGE...

RUN is a folder written by `medseg train local_discrimination`. Of a volume the middle slice is shown. Pictures of a
data set are for looking at, never for a commit.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

from medseg.cases import Case
from medseg.inference.model_folder import load_model
from medseg.methods.local_discrimination.method import LocalDiscrimination
from medseg.methods.local_discrimination.pictures import embedding_colours


def main() -> None:
    """Write one row per image: the image, its embedding, its regions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    method = load_model(arguments.model, arguments.device)
    assert isinstance(method, LocalDiscrimination)
    rows, maps, regions = [], [], []
    for path in arguments.images:
        image = method.load(Case(path.stem, path))["image"].as_tensor()
        with torch.no_grad():
            vectors, assignment = method.network.on_grid(image[None].to(arguments.device))
        rows.append(image)
        maps.append(vectors[0].cpu())
        regions.append(assignment[0].argmax(dim=0).cpu())
    palette = torch.rand(method.config.regions, 3, generator=torch.Generator().manual_seed(0))
    pictures = [
        torch.cat([shade(image), flat(colours), flat(palette[region].movedim(-1, 0))], dim=1)
        for image, colours, region in zip(rows, embedding_colours(maps), regions, strict=True)
    ]
    size = max(picture.shape[1] for picture in pictures), max(picture.shape[2] for picture in pictures)
    sheet = torch.cat([fill(picture, size) for picture in pictures], dim=2)
    Image.fromarray((255 * sheet).byte().permute(2, 1, 0).contiguous().numpy()).save(arguments.out)


def shade(image: torch.Tensor) -> torch.Tensor:
    """The image's middle slice as (3, x, y) in [0, 1]; of several channels that are no colours the first."""
    plane = flat(image if image.shape[0] == 3 else image[:1])
    low, high = plane.quantile(0.01), plane.quantile(0.99)
    return ((plane - low) / (high - low).clamp_min(1e-6)).clamp(0, 1).expand(3, -1, -1)


def flat(volume: torch.Tensor) -> torch.Tensor:
    """The middle slice of a volume (C, x, y, z); a picture as it is."""
    return volume[..., volume.shape[-1] // 2] if volume.ndim == 4 else volume


def fill(picture: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Pad (3, x, y) with black at the end."""
    return torch.nn.functional.pad(picture, (0, size[1] - picture.shape[2], 0, size[0] - picture.shape[1]))


if __name__ == "__main__":
    main()
