"""`model.json`: all that a model package says of its model. docs/format/model-package.md describes every field.

A card is read strictly: an unknown field, a missing one, or a value of another type is refused. Texts are texts: nothing in
them is ever looked up, expanded or evaluated, whatever they begin with.
"""

from __future__ import annotations

import json
from itertools import permutations, product
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from secure_media_processor.errors import ModelError

if TYPE_CHECKING:
    from secure_media_processor.medical.inference.classifier import ClassifierConfig
    from secure_media_processor.medical.unet.models import UNetConfig

SCHEMA_VERSION: Final = 1
WEIGHTS: Final = "weights.safetensors"
ONNX: Final = "model.onnx"
CARD: Final = "model.json"
FILE_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}(\.[A-Za-z0-9]{1,16}){0,2}$"
BACKGROUND: Final = 0
# The axes of an array by where they lead, such as RAS: to the right, to the front, to the head.
ORIENTATIONS: Final = frozenset(
    "".join(ends[axis][side] for axis, side in zip(order, sides, strict=True))
    for ends in [("LR", "PA", "IS")]
    for order in permutations(range(3))
    for sides in product((0, 1), repeat=3)
)


def _printable(text: str) -> str:
    if not all(character.isprintable() or character in "\n\t" for character in text):
        raise ValueError("it holds control characters")
    return text


def _known_orientation(text: str) -> str:
    if text not in ORIENTATIONS:
        raise ValueError("it is not three of R/L, A/P, S/I")
    return text


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")]
Word = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(_printable)]
Text = Annotated[str, StringConstraints(max_length=20_000), AfterValidator(_printable)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, StringConstraints(pattern=FILE_NAME)]
Value = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,2})$")]
"""A class as JSON can name it: a number from 0 to 255, in decimal digits."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
Millimetres = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
Size = Annotated[int, Field(ge=1, le=1024)]


class _Strict(BaseModel):
    """Refuses what it does not know, converts nothing, and does not change once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class UNetArchitecture(_Strict):
    """One of the networks in medical/unet/models.py, with the fields of its UNetConfig."""

    kind: Literal["unet"] = "unet"
    variant: Literal["standard", "attention", "residual"]
    dimensions: Literal[2, 3]
    in_channels: Annotated[int, Field(ge=1, le=64)]
    out_channels: Annotated[int, Field(ge=2, le=256)]
    channels: Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(min_length=2, max_length=8, strict=False)]

    @classmethod
    def of(cls, config: UNetConfig) -> Self:
        """Return the architecture with this configuration."""
        return cls(**config.to_json())

    def config(self) -> UNetConfig:
        """Return the configuration that build_unet takes."""
        from secure_media_processor.medical.unet.models import UNetConfig  # noqa: PLC0415 - brings torch

        return UNetConfig.from_json(self.model_dump(exclude={"kind"}))

    @property
    def multiple(self) -> int:
        """What the size of a window should be a multiple of, in voxels."""
        return int(2 ** (len(self.channels) - 1))


class ClassifierArchitecture(_Strict):
    """The network in medical/inference/classifier.py, with the fields of its ClassifierConfig."""

    kind: Literal["classifier"] = "classifier"
    dimensions: Literal[2, 3]
    in_channels: Annotated[int, Field(ge=1, le=64)]
    out_channels: Annotated[int, Field(ge=2, le=256)]
    channels: Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(min_length=2, max_length=8, strict=False)]

    @classmethod
    def of(cls, config: ClassifierConfig) -> Self:
        """Return the architecture with this configuration."""
        return cls(**config.to_json())

    def config(self) -> ClassifierConfig:
        """Return the configuration that build_classifier takes."""
        from secure_media_processor.medical.inference.classifier import ClassifierConfig  # noqa: PLC0415 - brings torch

        return ClassifierConfig.from_json(self.model_dump(exclude={"kind"}))

    @property
    def multiple(self) -> int:
        """What the size of an input should be a multiple of, in voxels."""
        return int(2 ** (len(self.channels) - 1))


class OnnxArchitecture(_Strict):
    """A network in ONNX: one input (B, C, [D,] H, W) and one output (B, K, [D,] H, W), logits, both float32."""

    kind: Literal["onnx"] = "onnx"
    multiple: Annotated[int, Field(ge=1, le=256)] = 16
    """What the size of a window must be a multiple of, in voxels."""


class LinkNetArchitecture(_Strict):
    """The two networks of medical/inference/brain.py: one finds the box in which the brain is, one the brain in that box."""

    kind: Literal["linknet"] = "linknet"

    @property
    def multiple(self) -> int:
        """What the size of an input must be a multiple of, in voxels."""
        return 32


Architecture: TypeAlias = Annotated[
    UNetArchitecture | OnnxArchitecture | LinkNetArchitecture | ClassifierArchitecture, Field(discriminator="kind")
]


class Normalization(_Strict):
    """How intensities are scaled: `normalized` in medical/preprocessing/normalize.py with these settings."""

    method: Literal["zscore", "minmax", "percentile", "none"]
    low: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 0.5
    """Percentile; values below are raised to it where the method clips."""
    high: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 99.5
    mask: Literal["none", "foreground"] = "none"
    """Whose voxels are looked at: all, or those of `foreground_mask`."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError("low is not below high")
        return self


class Inputs(_Strict):
    """What the network wants to see."""

    channels: Annotated[tuple[Word, ...], Field(min_length=1, max_length=64, strict=False)]
    """What each image that goes in is, such as T1w; in order."""
    modality: Word | None = None
    """Modality (0008,0060) of the images it was made for; null for any."""
    orientation: Annotated[str, AfterValidator(_known_orientation)] = "RAS"
    """Where the axes of the array lead. Slices of a 2D network lie across the last one."""
    spacing: Annotated[tuple[Millimetres, Millimetres, Millimetres] | None, Field(strict=False)] = None
    """Along the axes in that orientation, mm; null to keep that of the image. A 2D network keeps the last one in any case."""
    roi: Annotated[tuple[Size, ...], Field(min_length=2, max_length=3, strict=False)]
    """Window with which it was trained, voxels, along the axes in that orientation: three, or two of a 2D network."""
    normalization: Normalization
    crop: Literal["none", "foreground"] = "none"
    """Whether the network looks only at the box around `foreground_mask`; outside it is background."""


class Code(_Strict):
    """A coded concept, such as 10200004, SCT, Liver."""

    value: Word
    scheme: Word
    meaning: Word


class LabelCodes(_Strict):
    """What a label is called in a DICOM Segmentation."""

    category: Code
    """SegmentedPropertyCategoryCodeSequence (0062,0003)."""
    type: Code
    """SegmentedPropertyTypeCodeSequence (0062,000F)."""


StepLabels = Annotated[tuple[Annotated[int, Field(ge=1, le=255)], ...], Field(min_length=1, max_length=255, strict=False)]
Reach = Annotated[float, Field(gt=0, le=50, allow_inf_nan=False)]
"""mm."""


class PlainStep(_Strict):
    """A step of medical/unet/postprocessing.py that needs nothing but labels."""

    step: Literal["largest-component", "fill-holes"]
    labels: StepLabels


class RemoveSmall(_Strict):
    """Removes pieces of these labels that are smaller."""

    step: Literal["remove-small"]
    labels: StepLabels
    ml: Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False)]


class ReachingStep(_Strict):
    """A step of medical/unet/postprocessing.py with a radius or standard deviation."""

    step: Literal["open", "close", "smooth"]
    labels: StepLabels
    mm: Reach


PostStep: TypeAlias = Annotated[PlainStep | RemoveSmall | ReachingStep, Field(discriminator="step")]


class Outputs(_Strict):
    """What comes out."""

    labels: Annotated[dict[Value, Word], Field(min_length=2, max_length=256)]
    """Class → name; all from 0 on, without gaps. 0 is the background, or of a classifier the first class."""
    postprocessing: Annotated[tuple[PostStep, ...], Field(max_length=16, strict=False)] = ()
    codes: Annotated[dict[Value, LabelCodes], Field(max_length=256)] = {}

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if {int(value) for value in self.labels} != set(range(len(self.labels))):
            raise ValueError("the labels are not 0, 1, 2 and so on")
        if not set(self.codes) <= set(self.labels) - {str(BACKGROUND)}:
            raise ValueError("there are codes for what is no label")
        if any(label not in range(len(self.labels)) for step in self.postprocessing for label in step.labels):
            raise ValueError("postprocessing names what is no label")
        return self


class Estimate(_Strict):
    """A figure with its confidence interval of 95 %."""

    mean: Finite
    low: Finite | None = None
    high: Finite | None = None


class Metrics(_Strict):
    """How good the model was, and on what."""

    dataset: Text
    n: Annotated[int, Field(ge=1)]
    """How many cases."""
    split: Text
    """How they were chosen, and kept from training."""
    values: dict[Word, dict[Word, Estimate]]
    """Label → metric → figure."""


class TestVector(_Strict):
    """An input that is made of a seed, and what comes out of the network for it."""

    seed: Annotated[int, Field(ge=0, lt=2**63)]
    shape: Annotated[tuple[Annotated[int, Field(ge=1, le=256)], ...], Field(min_length=2, max_length=3, strict=False)]
    """Spatial, voxels."""
    values: Annotated[tuple[Finite, ...], Field(min_length=1, max_length=4096, strict=False)]
    """Logits at evenly spaced places of the flattened output; see the format page."""
    tolerance: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
    """Largest absolute difference that is still the same."""


class ModelCard(_Strict):
    """`model.json`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Name
    version: Name
    task: Literal["segment", "classify"]
    architecture: Architecture
    inputs: Inputs
    outputs: Outputs
    intended_use: Text
    limitations: Text
    training_data: Text
    licence: Text
    metrics: Metrics | None = None
    files: Annotated[dict[FileName, Sha256], Field(max_length=15)] = {}
    """Every file of the package but this one → SHA-256 of its bytes. write_package fills it in."""
    test_vector: TestVector | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        dimensions = len(self.inputs.roi)
        if isinstance(self.architecture, UNetArchitecture | ClassifierArchitecture):
            if self.architecture.in_channels != len(self.inputs.channels):
                raise ValueError("in_channels is not the number of inputs.channels")
            if self.architecture.out_channels != len(self.outputs.labels):
                raise ValueError("out_channels is not the number of outputs.labels")
            if self.architecture.dimensions != dimensions:
                raise ValueError("inputs.roi has not the dimensions of the architecture")
        if isinstance(self.architecture, LinkNetArchitecture):
            sizes = (len(self.inputs.channels), len(self.outputs.labels), dimensions, self.inputs.orientation, self.task)
            if sizes != (1, 2, 3, "RAS", "segment"):
                raise ValueError("linknet segments one label in one image of three dimensions that is oriented RAS")
        if self.test_vector is not None and len(self.test_vector.shape) != dimensions:
            raise ValueError("the shape of the test vector has not the dimensions of inputs.roi")
        return self

    @model_validator(mode="after")
    def _classifies(self) -> Self:
        if isinstance(self.architecture, ClassifierArchitecture):
            if self.task != "classify":
                raise ValueError("a classifier has the task classify")
            if self.outputs.postprocessing or self.outputs.codes:
                raise ValueError("postprocessing and codes are for labels of voxels, not for classes of images")
            if self.inputs.crop != "none":
                raise ValueError("a classifier sees all of an image, not a box in it")
        return self

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return len(self.inputs.roi)

    @property
    def labels(self) -> dict[int, str]:
        """Class → name, in order."""
        return {int(value): self.outputs.labels[value] for value in sorted(self.outputs.labels, key=int)}

    def to_bytes(self) -> bytes:
        """Return the file: JSON in UTF-8, the same bytes for the same card."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def parse_card(data: bytes) -> ModelCard:
    """Read `model.json`.

    Raises:
        ModelError: it is not JSON, or not what docs/format/model-package.md says; the first field at fault is named.
    """
    try:
        json.loads(data, object_pairs_hook=_unique)  # of two fields with one name each reader would take another
        return ModelCard.model_validate_json(data)
    except ValidationError as error:
        raise ModelError(f"{CARD}: {_first(error)}", hint="docs/format/model-package.md describes the file") from None
    except RecursionError:
        raise ModelError(f"{CARD}: it is nested too deeply") from None
    except ValueError:
        raise ModelError(f"{CARD}: it is not JSON, or has a field twice") from None


def _unique(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError


def _first(error: ValidationError) -> str:
    """Return which field is wrong and how, without its value."""
    first: Any = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(step) for step in first["loc"])[:100]
    return f"{place or 'the card'}: {first['msg']}"
