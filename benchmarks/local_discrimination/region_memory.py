"""Memory of the region loss: one matrix product against prototypes x channels x pixels.

python benchmarks/local_discrimination/region_memory.py --images 16 --size 448
"""

from __future__ import annotations

import argparse
import json
import math

import torch

from medseg.losses.region_discrimination import RegionDiscriminationLoss, region_vectors


def main() -> None:
    """Count the numbers that a forward pass keeps for its backward pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--regions", type=int, default=16)
    parser.add_argument("--channels", type=int, default=32)
    arguments = parser.parse_args()
    grid = (arguments.size,) * 2
    assignment = torch.rand(arguments.images, arguments.regions, *grid, requires_grad=True)
    vectors = torch.rand(arguments.images, arguments.channels, *grid, requires_grad=True)
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        RegionDiscriminationLoss()(region_vectors(assignment, vectors)).backward()
    inputs = {assignment.data_ptr(), vectors.data_ptr()}
    product = 4 * arguments.images * arguments.regions * arguments.channels * math.prod(grid)
    own = sum(size for pointer, size in kept.items() if pointer not in inputs)
    print(json.dumps({"kept_beside_inputs_mb": round(own / 1e6, 3), "written_out_mb": round(product / 1e6, 1)}))


if __name__ == "__main__":
    main()
