from __future__ import annotations

from typing import Any

import pytest
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (BatchInferImageType.IMAGES_UNLABELED, ["organ_003", "organ_004"]),
        ("labeled", ["organ_000", "organ_001", "organ_002"]),
        (["organ_004"], ["organ_004"]),
    ],
)
def test_batch_saves_masks_of_the_images_that_are_meant(trained_app: Any, images: Any, expected: list[str]) -> None:
    result = trained_app.batch_infer(
        {"model": "supervised", "images": images, "multi_gpu": True, "gpus": "all", "label_tag": "original"}
    )

    assert sorted(result) == expected
    labels = {i: trained_app.datastore().get_labels_by_image_id(i) for i in trained_app.datastore().list_images()}
    assert sorted(i for i, tags in labels.items() if "original" in tags) == expected


def test_all_images_is_the_default(trained_app: Any) -> None:
    assert len(trained_app.batch_infer({"model": "supervised"})) == 5
