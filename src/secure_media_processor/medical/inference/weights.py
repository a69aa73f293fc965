"""The header of a safetensors file, read and compared with an architecture before a tensor is made of it.

The format (https://github.com/huggingface/safetensors): 8 bytes with the length of the header, little-endian; the header, JSON:
name → {dtype, shape, data_offsets: [begin, end]}; then the numbers, one tensor after another without gaps.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

from secure_media_processor.errors import MissingExtraError, ModelError
from secure_media_processor.medical.inference.card import WEIGHTS, OnnxArchitecture

if TYPE_CHECKING:
    from secure_media_processor.medical.inference.card import (
        ClassifierArchitecture,
        LinkNetArchitecture,
        ModelCard,
        UNetArchitecture,
    )

_LENGTH: Final = 8
_MAX_HEADER: Final = 4 * 1024**2
_MAX_TENSORS: Final = 10_000
_MAX_AXES: Final = 8
_BYTES: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_FLOATS: Final = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the header says of a tensor."""

    dtype: str
    """As safetensors calls it, such as F32."""
    shape: tuple[int, ...]


def read_header(data: bytes) -> dict[str, TensorInfo]:
    """Return what is in a safetensors file: name → type and shape. Every byte of the file belongs to one tensor.

    Raises:
        ModelError: it is damaged, or beyond bounds.
    """
    length = int.from_bytes(data[:_LENGTH], "little")
    if len(data) < _LENGTH or not 2 <= length <= min(_MAX_HEADER, len(data) - _LENGTH):  # noqa: PLR2004 - "{}"
        raise ModelError(f"{WEIGHTS} is not a safetensors file")
    try:
        header = json.loads(data[_LENGTH : _LENGTH + length], object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise ModelError(f"{WEIGHTS}: its header is not JSON, or names a tensor twice") from None
    if not isinstance(header, dict) or len(header) > _MAX_TENSORS:
        raise ModelError(f"{WEIGHTS}: its header is not a list of up to {_MAX_TENSORS} tensors")
    header.pop("__metadata__", None)
    found, places = {}, []
    for name, entry in header.items():
        found[name], place = _tensor(name, entry)
        places.append(place)
    end = 0
    for begin, after in sorted(places):
        if begin != end:
            raise ModelError(f"{WEIGHTS}: its tensors overlap or leave gaps")
        end = after
    if _LENGTH + length + end != len(data):
        raise ModelError(f"{WEIGHTS}: it is not as long as its header says")
    return found


def check_weights(data: bytes, card: ModelCard) -> None:
    """Raise ModelError unless the tensors have the names, shapes and types of the card's architecture."""
    if isinstance(card.architecture, OnnxArchitecture):
        raise ModelError("the architecture has no weights of its own")
    found, wanted = read_header(data), expected_tensors(card.architecture)
    if found.keys() != wanted.keys():
        name = min(found.keys() ^ wanted.keys())
        state = "is missing" if name in wanted else "has no place in the network"
        raise ModelError(f"{WEIGHTS}: {name[:80]!a} {state}")
    for name, info in found.items():
        if info.shape != wanted[name]:
            raise ModelError(f"{WEIGHTS}: {name} has the shape {list(info.shape)}, not {list(wanted[name])}")
        if info.dtype not in _FLOATS:
            raise ModelError(f"{WEIGHTS}: {name} has the type {info.dtype}, not one of {', '.join(_FLOATS)}")


def expected_tensors(
    architecture: UNetArchitecture | LinkNetArchitecture | ClassifierArchitecture,
) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of each weight, without memory for a single one."""
    try:
        import torch  # noqa: PLC0415 - heavy
    except ImportError:
        raise MissingExtraError("torch is not installed", hint="pip install 'secure-media-processor[ml]'") from None
    from secure_media_processor.medical.inference.networks import build  # noqa: PLC0415 - as torch

    with torch.device("meta"):
        network = build(architecture)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _tensor(name: str, entry: object) -> tuple[TensorInfo, tuple[int, int]]:
    error = ModelError(f"{WEIGHTS}: the header is wrong for {name[:80]!a}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise error
    dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in _BYTES or not _sizes(shape) or len(shape) > _MAX_AXES or not _sizes(place) or len(place) != 2:  # noqa: PLR2004
        raise error
    if place[1] - place[0] != prod(shape) * _BYTES[dtype]:
        raise error
    return TensorInfo(dtype, tuple(shape)), (place[0], place[1])


def _sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**40 for value in values)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found
