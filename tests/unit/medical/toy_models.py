"""Small models for the tests of inference: packages that are quick to make, and networks whose results are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from scipy import ndimage

from secure_media_processor.medical.inference.card import (
    Inputs,
    ModelCard,
    Normalization,
    OnnxArchitecture,
    Outputs,
    UNetArchitecture,
)
from secure_media_processor.medical.inference.packages import Package, write_package
from secure_media_processor.medical.unet.engines import OutOfMemoryError
from secure_media_processor.medical.unet.models import UNetConfig, build_unet


def card_of(config: UNetConfig | None, *, roi: tuple[int, ...] = (16, 16, 16), classes: int = 3, **fields: Any) -> ModelCard:
    inputs = {"channels": ("T1w",), "roi": roi, "normalization": Normalization(method="zscore")}
    inputs |= {name: fields.pop(name) for name in list(fields) if name in Inputs.model_fields}
    outputs = {"labels": {str(value): f"label {value}" for value in range(classes)}}
    outputs |= {name: fields.pop(name) for name in list(fields) if name in Outputs.model_fields}
    known = {
        "name": "toy",
        "version": "1.0",
        "task": "segment",
        "architecture": OnnxArchitecture(multiple=4) if config is None else UNetArchitecture.of(config),
        "inputs": Inputs(**inputs),
        "outputs": Outputs(**outputs),
        "intended_use": "tests",
        "limitations": "random weights",
        "training_data": "none",
        "licence": "Apache-2.0",
    }
    return ModelCard(**(known | fields))


def unet_package(path: Path, *, dimensions: int = 3, classes: int = 3, channels: int = 1, **fields: Any) -> Package:
    """Write a package of a U-Net with random weights that are the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = UNetConfig("residual", dimensions, channels, classes, (4, 8))
        weights = build_unet(config).state_dict()
    names = {"channels": tuple(f"image {number}" for number in range(channels))}
    return write_package(
        path,
        card_of(config, classes=classes, **({"roi": (16,) * dimensions} | names | fields)),
        weights=weights,
        overwrite=True,
    )


def onnx_bytes(*, classes: int = 3, spatial: tuple[int | str, ...] = ("i", "j", "k"), op: str = "Conv", **model: Any) -> bytes:
    """Return a graph of one convolution of 3 x 3 x 3."""
    rng = np.random.default_rng(0)
    weights = numpy_helper.from_array(rng.normal(size=(classes, 1, *(3,) * len(spatial))).astype(np.float32), "w")
    node = helper.make_node(op, ["x", "w"], ["y"], pads=[1] * 2 * len(spatial), domain=model.pop("domain", ""))
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 1, *spatial])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", classes, *spatial])
    graph = helper.make_graph([node], "toy", [given], [made], [weights])
    opsets = model.pop("opsets", [helper.make_opsetid("", 18)])
    return onnx.ModelProto.SerializeToString(helper.make_model(graph, opset_imports=opsets, ir_version=10, **model))


class Toy:
    """Engines that do arithmetic, and can run out of memory: more voxels at once than `most`, on that device."""

    def __init__(self, function: Any, *, most: int | None = None, device: str = "cuda") -> None:
        self.function = function
        self.most = most
        self.limited = device
        self.opened: list[tuple[tuple[int, ...], str]] = []
        self.seen: list[tuple[int, ...]] = []
        self.device = ""

    def open(self, window: tuple[int, ...], device: str) -> Toy:
        self.opened.append((window, device))
        self.device = device
        return self

    def logits(self, windows: np.ndarray) -> np.ndarray:
        if self.most is not None and self.device == self.limited and windows.size > self.most:
            raise OutOfMemoryError
        self.seen.append(windows.shape)
        return np.ascontiguousarray(self.function(windows), np.float32)


def thirds(windows: np.ndarray) -> np.ndarray:
    """A network without surroundings: low values are label 0, middle ones 1, high ones 2."""
    x = windows[:, :1]
    return np.concatenate([-x - 0.5, -np.abs(x), x - 0.5], axis=1)


def blurred(windows: np.ndarray) -> np.ndarray:
    """A network that looks at the voxels next to each, and alike in both directions."""
    return thirds(ndimage.uniform_filter(windows, [0, 0, *[3] * (windows.ndim - 2)]))
