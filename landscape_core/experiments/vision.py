"""Import torchvision's data sets, also beside a CPU-only torch."""

from __future__ import annotations

from types import ModuleType

import torch


def torchvision_datasets() -> ModuleType:
    """Return ``torchvision.datasets``.

    The torchvision wheels on PyPI for Linux are built for CUDA. Beside a CPU-only torch their
    compiled operators do not load, and the import stops at the first one whose schema it looks
    up (pytorch/vision issues 9077 and 9085). The data sets use none of them: declaring the
    schemas is enough, and is done only after the plain import has failed in that way.
    """
    try:
        from torchvision import datasets
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        globals()["_library"] = library  # the schemas go when the library object does
        from torchvision import datasets
    return datasets
