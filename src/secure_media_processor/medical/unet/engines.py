"""What computes: torch, OpenVINO or ONNX Runtime, behind one call that takes windows and returns logits.

No engine reaches out: OpenVINO's converter would write an identifier into the home folder and report its use over the network,
and is kept from loading the module that does it. Threads are as many as the process may use cores.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, get_args

import numpy as np

from secure_media_processor.core.device import has_bfloat16, usable_cores
from secure_media_processor.errors import MissingExtraError, ModelError, UsageError
from secure_media_processor.medical.inference.card import LinkNetArchitecture, OnnxArchitecture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from secure_media_processor.medical.inference.packages import Package

EngineName: TypeAlias = Literal["torch", "openvino", "onnx"]
Precision: TypeAlias = Literal["float32", "bfloat16"]
DeviceName: TypeAlias = Literal["cpu", "cuda"]
ENGINES: tuple[str, ...] = get_args(EngineName)
_TELEMETRY = "openvino_telemetry"


class OutOfMemoryError(Exception):
    """A device has not enough memory for what it was given."""


class Engine(Protocol):
    """A network that is ready for windows of one size."""

    def logits(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (B, K, [D,] H, W) for windows (B, C, [D,] H, W). The caller may change it; the next call may overwrite it.

        Raises:
            OutOfMemoryError: the device has not enough memory for them.
        """


class Engines(Protocol):
    """What opens engines."""

    def open(self, window: tuple[int, ...], device: DeviceName) -> Engine:
        """Return an engine for windows of this size, voxels. Raises OutOfMemoryError as Engine.logits."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What computes, and how precisely."""

    engine: EngineName
    precision: Precision
    device: DeviceName


def choose(
    package: Package,
    *,
    engine: Literal["auto", "torch", "openvino", "onnx"] = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Choice:
    """Return what `auto` comes to on this machine.

    The device is a GPU if torch sees one and the model is not ONNX; the engine on the CPU is OpenVINO if it is installed, else
    torch, or ONNX Runtime for an ONNX graph; the precision is bfloat16 where the device computes with it.

    Raises:
        UsageError: they do not go together.
        MissingExtraError: what is asked for is not there.
    """
    if isinstance(package.card.architecture, LinkNetArchitecture):
        return _linknet_choice(engine, precision, device)
    is_graph = isinstance(package.card.architecture, OnnxArchitecture)
    if engine == "torch" and is_graph:
        raise UsageError("this model is an ONNX graph, which torch does not run", hint="use --engine openvino or onnx")
    if engine == "onnx" and not is_graph:
        raise UsageError("this package holds weights, not an ONNX graph", hint="use --engine openvino or torch")
    if device == "cuda" and (engine in ("openvino", "onnx") or is_graph):
        raise UsageError("only torch computes on a GPU, with a package that holds weights", hint="use --device cpu")
    if device == "cuda" and not _has_gpu():
        raise MissingExtraError("torch sees no GPU", hint="use --device cpu")
    on_gpu = device == "cuda" or (device == "auto" and engine in ("auto", "torch") and not is_graph and _has_gpu())
    if on_gpu:
        chosen: EngineName = "torch"
    elif engine == "auto":
        chosen = "openvino" if _installed("openvino") else "onnx" if is_graph else "torch"
    else:
        chosen = engine
    if chosen == "onnx" and precision == "bfloat16":
        raise UsageError("ONNX Runtime computes in float32", hint="use --engine openvino, or --precision float32")
    if precision == "auto":
        precision = "bfloat16" if chosen != "onnx" and (on_gpu or has_bfloat16()) else "float32"
    return Choice(chosen, precision, "cuda" if on_gpu else "cpu")


def _linknet_choice(engine: str, precision: str, device: Literal["auto", "cpu", "cuda"]) -> Choice:
    if engine not in ("auto", "torch") or precision == "bfloat16":
        raise UsageError("this model runs with torch in float32 only", hint="leave out --engine and --precision")
    if device == "cuda" and not _has_gpu():
        raise MissingExtraError("torch sees no GPU", hint="use --device cpu")
    return Choice("torch", "float32", "cuda" if device != "cpu" and _has_gpu() else "cpu")


def engines_of(package: Package, choice: Choice) -> Engines:
    """Return what opens the engines of a package. Raises ModelError if its weights are not finite."""
    if choice.engine == "onnx":
        return _OnnxEngines(package)
    if choice.engine == "openvino":
        return _OpenVinoEngines(package, choice.precision)
    return TorchEngines(network_of(package), choice.precision)


def network_of(package: Package) -> Any:
    """Return the network of a package with its weights, float32, on the CPU, ready to infer."""
    torch = _module("torch")
    from secure_media_processor.medical.inference.networks import build  # noqa: PLC0415 - brings torch

    architecture = package.card.architecture
    if isinstance(architecture, OnnxArchitecture):
        raise ModelError("an ONNX graph is no torch network", hint="use --engine openvino or onnx")
    state = package.state_dict()
    with torch.device("meta"):  # its random weights are never made
        network = build(architecture)
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True, assign=True)
    return network.requires_grad_(requires_grad=False).eval()


# --------------------------------------------------------------------------------------------------------------- torch


class TorchEngines:
    """Runs a torch module."""

    def __init__(self, network: Any, precision: Precision = "float32") -> None:
        """Take the network, (B, C, [D,] H, W) → logits."""
        self.network = network
        self.precision = precision

    def open(self, window: tuple[int, ...], device: DeviceName) -> Engine:  # noqa: ARG002 - it takes any size
        """Return the engine, with the network moved to the device."""
        torch = _module("torch")
        torch.set_num_threads(usable_cores())
        with _out_of_memory(torch):
            self.network.to(device, getattr(torch, self.precision))
        return _TorchEngine(self.network, torch, device, getattr(torch, self.precision))


@dataclass(frozen=True, slots=True)
class _TorchEngine:
    network: Any
    torch: Any
    device: DeviceName
    dtype: Any

    def logits(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        cudnn = self.torch.backends.cudnn
        with _out_of_memory(self.torch), self.torch.inference_mode(), cudnn.flags(deterministic=True, benchmark=False):
            given = self.torch.from_numpy(windows).to(self.device, self.dtype)
            made: NDArray[np.float32] = self.network(given).float().cpu().numpy()
        return made


@contextmanager
def _out_of_memory(torch: Any) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise OutOfMemoryError from None


# ------------------------------------------------------------------------------------------------------------ OpenVINO


class _OpenVinoEngines:
    """Compiles for windows of the size that is asked for."""

    def __init__(self, package: Package, precision: Precision) -> None:
        self.package = package
        self.precision = precision
        self.core: Any = None
        self.openvino: Any = None

    def open(self, window: tuple[int, ...], device: DeviceName) -> Engine:  # noqa: ARG002 - the CPU, see choose
        if self.core is None:
            self.openvino = quiet_openvino()
            self.core = self.openvino.Core()
        shape = [1, len(self.package.card.inputs.channels), *window]
        model = self._model(shape)
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bfloat16" else "f32",
            "INFERENCE_NUM_THREADS": usable_cores(),
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        return _OpenVinoEngine(self.core.compile_model(model, "CPU", settings).create_infer_request())

    def _model(self, shape: list[int]) -> Any:
        architecture = self.package.card.architecture
        if isinstance(architecture, OnnxArchitecture):
            model = self.core.read_model(self.package.onnx_bytes())
            try:
                model.reshape(shape)
            except RuntimeError:
                raise ModelError(f"the graph does not take windows of {_by(shape[2:])}", hint="try --tile N") from None
            return model
        torch = _module("torch")
        network = network_of(self.package)
        # As small as it can be: what is recorded does not depend on it. The padding of the network is not wanted in there.
        example = torch.zeros([1, shape[1], *[2 * architecture.multiple] * (len(shape) - 2)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls the recording that OpenVINO asks it for deprecated
            return self.openvino.convert_model(_Unpadded.of(network), example_input=example, input=shape)


class _Unpadded:
    """Makes a module of what a network does to windows that need no padding."""

    @staticmethod
    def of(network: Any) -> Any:
        torch = _module("torch")

        class Logits(torch.nn.Module):  # type: ignore[misc,name-defined]  # torch is not imported when this file is
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def forward(self, images: Any) -> Any:
                return self.network.logits(images)

        return Logits().eval()


@dataclass(frozen=True, slots=True)
class _OpenVinoEngine:
    request: Any

    def logits(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        if len(windows) == 1:
            made: NDArray[np.float32] = self.request.infer([windows], share_inputs=True, share_outputs=True)[0]
            return made
        return np.concatenate([np.array(self.request.infer([window[None]])[0], np.float32) for window in windows])


def quiet_openvino() -> Any:
    """Import OpenVINO without its telemetry: the module for it cannot be imported in this process any more.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # this is how an import is made to fail
    openvino = _module("openvino")
    stub = importlib.import_module("openvino.tools.ovc.telemetry_stub")
    for name in list(sys.modules):
        # Somebody may have imported OpenVINO before, with its telemetry.
        if name.startswith("openvino.tools.ovc") and hasattr(sys.modules[name], "tm"):
            sys.modules[name].tm = stub  # type: ignore[attr-defined]  # as hasattr says
    return openvino


# -------------------------------------------------------------------------------------------------------- ONNX Runtime


class _OnnxEngines:
    """Runs the graph of a package."""

    def __init__(self, package: Package) -> None:
        self.package = package
        self.session: Any = None

    def open(self, window: tuple[int, ...], device: DeviceName) -> Engine:  # noqa: ARG002 - the CPU, see choose
        if self.session is None:
            onnxruntime = _module("onnxruntime")
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = usable_cores()
            options.inter_op_num_threads = 1
            options.log_severity_level = 3
            self.session = onnxruntime.InferenceSession(self.package.onnx_bytes(), options, providers=["CPUExecutionProvider"])
        return _OnnxEngine(self.session, self.session.get_inputs()[0].name, window)


@dataclass(frozen=True, slots=True)
class _OnnxEngine:
    session: Any
    name: str
    window: tuple[int, ...]

    def logits(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            results = [self.session.run(None, {self.name: window[None]})[0] for window in windows]
        except Exception as error:
            if "onnxruntime" not in type(error).__module__:
                raise
            raise ModelError(f"the graph does not take windows of {_by(self.window)}", hint="try --tile N") from error
        return np.concatenate(results).astype(np.float32, copy=False)


# --------------------------------------------------------------------------------------------------------------- common


def _by(sizes: Any) -> str:
    return " x ".join(map(str, sizes))


def _has_gpu() -> bool:
    return _installed("torch") and bool(_module("torch").cuda.is_available())


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # its place is taken by something that is no module
        return False


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingExtraError(f"{name} is not installed", hint="pip install 'secure-media-processor[ml]'") from None
