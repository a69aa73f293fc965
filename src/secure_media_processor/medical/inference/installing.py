"""Models that are made on the user's machine, from weights that an installed package carries. Nothing is downloaded."""

from __future__ import annotations

import warnings
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, distribution
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from secure_media_processor.core.files import open_source, os_errors
from secure_media_processor.errors import IntegrityError, MissingExtraError
from secure_media_processor.medical.inference.card import Inputs, LinkNetArchitecture, ModelCard, Normalization, Outputs
from secure_media_processor.medical.inference.packages import write_package

if TYPE_CHECKING:
    from torch import Tensor

    from secure_media_processor.medical.inference.packages import Package

BRAIN_T1W: Final = "brain-t1w"
"""Name of the one model that can be installed."""
# Prefix of the weights → file in deepbet 1.0.2, and its SHA-256. Other files are not opened: TorchScript holds code.
_WEIGHTS: Final = {
    "box.": ("data/models/bbox_model.pt", "39a7b2b5f799faa1391ea97bfcdc0b9299f20d84f2316a4ff8918dc4685e40aa"),
    "brain.": ("data/models/model.pt", "de8ee7c69654d0dd3935dc4a5d84571d8ecf4637a6bfc01df399c4c2bc86e0fd"),
}
_MOST_BYTES: Final = 1 << 24
_INSTALL: Final = "pip install --no-deps deepbet==1.0.2 (its weights alone are used), and 'secure-media-processor[medical,ml]'"

_CARD: Final = ModelCard(
    name=BRAIN_T1W,
    version="1.0.2",
    task="segment",
    architecture=LinkNetArchitecture(),
    inputs=Inputs(
        channels=("T1w",), modality="MR", orientation="RAS", roi=(256, 256, 256), normalization=Normalization(method="none")
    ),
    outputs=Outputs(labels={"0": "background", "1": "brain"}),
    intended_use="The brain, with the fluid in and around it, in T1-weighted MR images of whole heads of adults. Research.",
    limitations=(
        "For T1-weighted images with the skull in them; other contrasts, cropped heads, large lesions and small children were "
        "not tried here. Intensities are scaled inside the model, from the image itself."
    ),
    training_data="That of deepbet 1.0.2 (Fisch et al. 2024, doi:10.1016/j.compbiomed.2024.108845); nothing was trained here.",
    licence="MIT, Copyright (c) 2023 Medical Machine Learning Lab - University of Münster; see LICENCE.txt",
)


def install_brain_t1w(target: Path, *, overwrite: bool = False) -> Package:
    """Write the package `brain-t1w` from the weights in the installed package deepbet. The same bytes each time.

    The weights are kept as float16, which holds every one of them exactly.

    Args:
        target: Folder of the model package, or a file that ends in .zip.
        overwrite: Whether a package that exists is replaced.

    Raises:
        MissingExtraError: deepbet or torch is not installed.
        IntegrityError: its weights are others than those that were tried.
        ExistsError: `target` exists.
    """
    weights: dict[str, Tensor] = {}
    for prefix, (name, digest) in _WEIGHTS.items():
        weights |= {prefix + key: tensor.half() for key, tensor in _state_dict(_data(name, digest)).items()}
    licence = _data_of_licence()
    return write_package(target, _CARD, weights=weights, texts={"LICENCE.txt": licence}, overwrite=overwrite)


def _state_dict(data: bytes) -> dict[str, Tensor]:
    try:
        import torch  # noqa: PLC0415 - heavy
    except ImportError:
        raise MissingExtraError("torch is not installed", hint=_INSTALL) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch would rather have no TorchScript; neither would we
        state: dict[str, Tensor] = torch.jit.load(BytesIO(data), map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    return state


def _data(name: str, digest: str) -> bytes:
    data = _file(name)
    if sha256(data).hexdigest() != digest:
        raise IntegrityError("the weights of deepbet are not those that were tried", hint=_INSTALL)
    return data


def _data_of_licence() -> str:
    return _file("deepbet-1.0.2.dist-info/LICENSE").decode("utf-8")


def _file(name: str) -> bytes:
    try:
        path = Path(str(distribution("deepbet").locate_file(name)))
    except PackageNotFoundError:
        raise MissingExtraError("the weights of deepbet are not installed", hint=_INSTALL) from None
    with os_errors(f"read {path}"), open_source(path) as file:
        return file.read(_MOST_BYTES)
