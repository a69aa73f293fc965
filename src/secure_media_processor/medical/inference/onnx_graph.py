"""What an ONNX graph may hold: standard operators, its own numbers, one image in and one out. All else is refused."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from secure_media_processor.errors import MissingExtraError, ModelError
from secure_media_processor.medical.inference.card import ONNX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from secure_media_processor.medical.inference.card import ModelCard

_DOMAINS: Final = ("", "ai.onnx")
_OLDEST: Final = 11
_MAX_NODES: Final = 20_000
_MAX_DEPTH: Final = 8
# They may run without end, or give another result each time.
_REFUSED: Final = frozenset(
    {"Loop", "Scan", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
_FLOAT: Final = 1  # TensorProto.FLOAT
_EXTERNAL: Final = 1  # TensorProto.EXTERNAL


@dataclass(frozen=True, slots=True)
class GraphShape:
    """What goes in and what comes out."""

    input_name: str
    spatial: tuple[int | None, ...]
    """Size along each spatial axis, voxels; None if any is taken."""
    batch: int | None
    """None if any."""


def check_graph(data: bytes, card: ModelCard) -> GraphShape:
    """Return the shape of a graph that may be run.

    Raises:
        ModelError: it is damaged, refers to files, has operators that are not ONNX's own, or does not fit the card.
    """
    model = _parsed(data)
    _check_versions(model)
    if model.functions:
        raise ModelError(f"{ONNX} defines functions of its own", hint="export it with its functions inlined")
    for graph, depth in _graphs(model.graph):
        if depth > _MAX_DEPTH:
            raise ModelError(f"{ONNX} is nested too deeply")
        _check_tensors(graph)
    nodes = [node for graph, _ in _graphs(model.graph) for node in graph.node]
    if len(nodes) > _MAX_NODES:
        raise ModelError(f"{ONNX} has more than {_MAX_NODES} operators")
    for node in nodes:
        if node.domain not in _DOMAINS:
            raise ModelError(f"{ONNX} has an operator of {node.domain[:40]!a}, which is not ONNX's own")
        if node.op_type in _REFUSED:
            raise ModelError(f"{ONNX} has the operator {node.op_type}, which may not end or not repeat its result")
    _check_whole(model)
    return _shape(model, card)


def _parsed(data: bytes) -> Any:
    try:
        import onnx  # noqa: PLC0415 - an extra
    except ImportError:
        raise MissingExtraError("onnx is not installed", hint="pip install 'secure-media-processor[ml]'") from None
    decode_error: type[Exception] = import_module("google.protobuf.message").DecodeError  # without types of its own
    try:
        return onnx.load_model_from_string(data)  # reads no other file
    except decode_error:
        raise ModelError(f"{ONNX} is damaged") from None


def _check_versions(model: Any) -> None:
    import onnx  # noqa: PLC0415 - is there by now

    newest = onnx.defs.onnx_opset_version()
    used = [entry.version for entry in model.opset_import if entry.domain in _DOMAINS]
    if len(used) != 1 or not _OLDEST <= used[0] <= newest:
        raise ModelError(f"{ONNX} does not use one version of the operators from {_OLDEST} to {newest}")
    if model.ir_version > onnx.IR_VERSION:
        raise ModelError(f"{ONNX} is of a newer kind than this version can read")


def _check_whole(model: Any) -> None:
    """Raise unless the graph keeps to the standard."""
    import onnx  # noqa: PLC0415 - is there by now

    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError):
        raise ModelError(f"{ONNX} does not keep to the ONNX standard") from None


def _graphs(graph: Any, depth: int = 0) -> Iterator[tuple[Any, int]]:
    """Yield the graph and those inside its operators, each with how deep it lies."""
    yield graph, depth
    if depth > _MAX_DEPTH:
        return
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from _graphs(inner, depth + 1)


def _check_tensors(graph: Any) -> None:
    """Raise if numbers are kept in another file."""
    tensors = [*graph.initializer]
    tensors += [part for sparse in graph.sparse_initializer for part in (sparse.values, sparse.indices)]
    for node in graph.node:
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors]
            sparse = [attribute.sparse_tensor, *attribute.sparse_tensors]
            tensors += [part for one in sparse for part in (one.values, one.indices)]
    if any(tensor.data_location == _EXTERNAL or tensor.external_data for tensor in tensors):
        raise ModelError(f"{ONNX} keeps numbers in another file", hint="save it as one file")


def _shape(model: Any, card: ModelCard) -> GraphShape:
    """Return what goes in and out. Raises unless it is what the card says."""
    own = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in own]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise ModelError(f"{ONNX} has not one input and one output")
    wanted = card.dimensions + 2
    given, made = (_sizes(value) for value in (inputs[0], model.graph.output[0]))
    if given is None or len(given) != wanted or (made is not None and len(made) != wanted and card.task == "segment"):
        raise ModelError(f"{ONNX} does not take and give float32 with {wanted} axes")
    if given[1] not in (None, len(card.inputs.channels)):
        raise ModelError(f"{ONNX} takes {given[1]} channels, not {len(card.inputs.channels)}")
    if made is not None and len(made) > 1 and made[1] not in (None, len(card.outputs.labels)):
        raise ModelError(f"{ONNX} gives {made[1]} classes, not {len(card.outputs.labels)}")
    return GraphShape(inputs[0].name, tuple(given[2:]), given[0])


def _sizes(value: Any) -> list[int | None] | None:
    """Return the sizes of a float32 tensor, None for those that are open; None if it is something else."""
    if not value.type.HasField("tensor_type") or value.type.tensor_type.elem_type != _FLOAT:
        return None
    axes = value.type.tensor_type.shape.dim
    return [axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else None for axis in axes]
