"""Text in pictures: all of it goes, nothing else changes, and where that is not sure the image is refused."""

from __future__ import annotations

import math
import socket
import sys
import warnings

import pytest

pytest.importorskip("rapidocr", reason="the extra `ocr` is not installed")

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import compress, pixel_array
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    UltrasoundImageStorage,
)

from secure_media_processor.medical.deid import stored_pixels, text_finder
from secure_media_processor.medical.deid.burned_in import PixelOutcome, PixelsNotCleanError, clean_pixels
from secure_media_processor.medical.deid.harmless import is_harmless
from secure_media_processor.medical.deid.text_finder import TextBox

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

Pixels = NDArray[np.generic]
FIRST, LAST = ["ANNA", "John", "MARIA", "Li", "Ahmed"], ["SMITH", "Müller", "GARCIA", "Nguyen", "KOWALSKI"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def fan(seed: int, rows: int = 600, columns: int = 800) -> NDArray[np.uint8]:
    """Return speckle in the shape of an ultrasound sector, and black around it."""
    y, x = np.mgrid[:rows, :columns]
    radius, angle = np.hypot(x - columns / 2, y + 40), np.arctan2(x - columns / 2, y + 40)
    speckle = np.random.default_rng(seed).rayleigh(40, (rows, columns)).clip(0, 255)
    inside = (radius > 0.15 * rows) & (radius < 0.95 * rows) & (np.abs(angle) < 0.7)
    return np.where(inside, speckle, 0).astype(np.uint8)


def write(  # noqa: PLR0917 - reads best as a list of lines
    image: Pixels, text: str, left: int, top: int, size: int, value: int, turn: int = 0
) -> tuple[slice, slice]:
    """Write `text` with smooth edges into `image`; return where it stands."""
    font = ImageFont.load_default(size)
    letters = Image.new("L", (math.ceil(font.getlength(text)) + 2, size + 5), 0)
    ImageDraw.Draw(letters).text((1, 0), text, 255, font)
    alpha = np.asarray(letters.rotate(turn, expand=True)) / 255
    place = slice(top, top + alpha.shape[0]), slice(left, left + alpha.shape[1])
    image[place] = np.rint(image[place] * (1 - alpha) + value * alpha).astype(image.dtype)
    return place


def patient_lines(number: int) -> list[str]:
    """Return seven lines as scanners show them; those of each number are others."""
    first, last = FIRST[number % 5], LAST[number * 3 % 5]
    return [
        f"{last}, {first}",
        f"ID: {4711000 + 977 * number}",
        f"DOB {number % 28 + 1:02}/{number % 12 + 1:02}/{1931 + 7 * number}",
        f"20{number + 11}-0{number % 9 + 1}-1{number % 10} 1{number % 10}:2{number % 10}",
        "St. Mary's Hospital",
        f"Dr. {last.title()}",
        f"ACC {80214 + 3331 * number}",
    ]


def ultrasound(pixels: Pixels, photometric: str = "MONOCHROME2", frames: int | None = None) -> Dataset:
    """Return an image object with `pixels`, shape ([frames,] rows, columns[, 3])."""
    colours = photometric in {"RGB", "YBR_FULL"}
    rows, columns = pixels.shape[-3:-1] if colours else pixels.shape[-2:]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = UltrasoundImageStorage, "1.2.3"
    dataset.Modality, dataset.PhotometricInterpretation = "US", photometric
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 3 if colours else 1, int(pixels.dtype.kind == "i")
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    if colours:
        dataset.PlanarConfiguration = 0
    if frames is not None:
        dataset.NumberOfFrames = frames
    dataset.PixelData = pixels.tobytes() + bytes(pixels.nbytes % 2)
    dataset["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    return dataset


def values_of(dataset: Dataset) -> Pixels:
    """Return the stored values, decoded but not converted."""
    return pixel_array(dataset, raw=True)


# --- with the real text recognition ------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 5])
def test_all_of_seventy_lines_are_masked_and_the_rest_is_as_it_was(start: int) -> None:
    image = fan(start)
    places = []
    for number in range(start, start + 5):
        left, top = (6, 6 + 190 * (number % 5)) if number % 5 < 3 else (610, 6 + 190 * (number % 5 - 3))
        for line, text in enumerate(patient_lines(number)):
            places.append(write(image, text, left, top + 26 * line, 11 + number % 5, 160 + 19 * (number % 6)))
    dataset = ultrasound(image)
    outcome = clean_pixels(dataset)
    after = values_of(dataset)
    assert [place for place in places if after[place].any() and (after[place] == image[place]).mean() > 0.05] == []
    assert outcome.frames_masked == 1
    assert outcome.boxes >= 35 - 5  # neighbours may be found as one
    middle = slice(150, 560), slice(300, 500)
    assert (after[middle] == image[middle]).all()
    assert ((after == image) | (after == 0)).all()
    assert dataset.BurnedInAnnotation == "NO"


def test_faint_turned_bright_and_dark_text_is_masked_too() -> None:
    image = fan(3)
    places = [
        write(image, "SMITH, ANNA", 10, 10, 14, 60),
        write(image, "DOB 12/03/1956", 10, 40, 14, 12),  # nobody sees it, before the window is changed
        write(image, "ID: 4711998", 760, 200, 13, 220, turn=90),
        write(image, "Mercy Hospital", 20, 300, 13, 220, turn=270),
        write(image, "Dr. Kowalski", 330, 250, 18, 255),
        write(image, "Ward 12, M. Garcia", 330, 420, 14, 0),
    ]
    image[500:600, 600:800] = 128
    places.append(write(image, "Station 7 West", 620, 530, 14, 138))
    dataset = ultrasound(image)
    clean_pixels(dataset)
    after = values_of(dataset)
    assert [(after[place] == 0).mean() > 0.95 for place in places] == [True] * len(places)


def test_deep_values_beyond_the_window_are_read_too() -> None:
    image = (fan(4, 320, 400).astype(np.int16) * 4) - 1000
    places = [write(image, "SMITH, ANNA", 5, 5, 14, 3000), write(image, "ID: 4711998", 5, 290, 14, -960)]
    dataset = ultrasound(image)
    dataset.WindowCenter, dataset.WindowWidth = -500, 400
    clean_pixels(dataset)
    after = values_of(dataset)
    assert all((after[place] == -1000).mean() > 0.95 for place in places)
    assert ((after == image) | (after == -1000)).all()


def test_scales_stay_and_an_image_without_other_text_is_not_touched() -> None:
    image = fan(6)
    for line, text in enumerate(["MI 0.8", "TIS 0.4", "Gain 52 dB", "12 cm", "32 fps", "5.0 MHz"]):
        write(image, text, 10, 10 + 30 * line, 15, 230)
    dataset = ultrasound(image)
    before = dataset.PixelData
    assert clean_pixels(dataset) == PixelOutcome(0, 0)
    assert dataset.PixelData == before
    assert dataset.BurnedInAnnotation == "NO"
    place = write(image, "SMITH, ANNA", 600, 10, 15, 230)
    dataset = ultrasound(image)
    assert clean_pixels(dataset).boxes
    after = values_of(dataset)
    assert not after[place].any()
    assert (after[:, :500] == image[:, :500]).all()


def test_a_real_study_loses_its_words() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = dcmread(str(get_testdata_file("examples_rgb_color.dcm", download=False)))
    before = values_of(dataset).copy()
    clean_pixels(dataset)
    after = values_of(dataset)
    assert not after[8:53, :100].any()  # hospital and settings
    assert (after[90:130, 100:230] == before[90:130, 100:230]).all()


# --- with text that is planted: kinds of pixels ------------------------------------------------------------------------

BOX = TextBox(4, 2, 12, 7, "SMITH, ANNA", 0.99)
PLACE = slice(2, 7), slice(4, 12)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let text be found in PLACE wherever it is not of one colour; return what it says, which a test may change."""
    said = [BOX.text]

    def find(picture: NDArray[np.uint8]) -> list[TextBox]:
        part = picture[PLACE].reshape(-1, picture[PLACE].shape[-1] if picture.ndim == 3 else 1)
        return [] if (part == part[0]).all() else [TextBox(4, 2, 12, 7, said[0], 0.99)]

    monkeypatch.setattr(text_finder, "find_text", find)
    monkeypatch.setattr(text_finder, "local_contrast", lambda values: np.zeros(values.shape[:2], np.uint8))
    return said


def noise(*shape: int, dtype: str = "u1", top: int = 256) -> Pixels:
    return np.random.default_rng(sum(shape)).integers(0, top, shape).astype(dtype)


def assert_only_the_place_is(black: object, before: Pixels, dataset: Dataset) -> None:
    after = values_of(dataset)
    assert after.shape == before.shape
    expected = before.copy()
    expected[(..., *PLACE, slice(None)) if before.shape[-1] == 3 else (..., *PLACE)] = black
    assert np.array_equal(after, expected)
    assert dataset.BurnedInAnnotation == "NO"


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize(
    ("pixels", "photometric", "black"),
    [
        (noise(70, 80), "MONOCHROME2", 0),
        (noise(70, 80, dtype="<u2", top=4096), "MONOCHROME1", 65535),
        (noise(70, 81), "MONOCHROME1", 255),
        (noise(70, 80, 3), "RGB", 0),
        (noise(70, 80, 3), "YBR_FULL", (0, 128, 128)),
    ],
    ids=["8", "16-inverse", "odd-inverse", "rgb", "ybr"],
)
def test_every_encoding_keeps_every_other_value(
    planted: list[str], syntax: str, pixels: Pixels, photometric: str, black: object
) -> None:
    dataset = ultrasound(pixels, photometric)
    if syntax != ExplicitVRLittleEndian:
        compress(dataset, syntax, generate_instance_uid=False)
    assert clean_pixels(dataset) == PixelOutcome(1, 1)
    assert_only_the_place_is(black, pixels, dataset)
    assert dataset.PhotometricInterpretation == photometric
    assert dataset.file_meta.TransferSyntaxUID == syntax
    assert "LossyImageCompression" not in dataset
    assert dataset.SOPInstanceUID == "1.2.3"


def test_signed_values_and_padding(planted: list[str]) -> None:
    pixels = noise(20, 30, dtype="<i2", top=900) - np.int16(400)
    dataset = ultrasound(pixels)
    clean_pixels(dataset)
    assert_only_the_place_is(pixels.min(), pixels, dataset)
    dataset = ultrasound(pixels)
    dataset.add_new("PixelPaddingValue", "SS", -2000)
    clean_pixels(dataset)
    assert_only_the_place_is(-2000, pixels, dataset)


def test_big_endian_implicit_and_planar(planted: list[str]) -> None:
    pixels = noise(20, 30, dtype=">u2", top=4096)
    dataset = ultrasound(pixels)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    clean_pixels(dataset)
    assert_only_the_place_is(0, pixels, dataset)
    dataset = ultrasound(noise(20, 30))
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    clean_pixels(dataset)
    assert_only_the_place_is(0, noise(20, 30), dataset)
    colours = noise(20, 30, 3)
    dataset = ultrasound(colours, "RGB")
    dataset.PlanarConfiguration, dataset.PixelData = 1, np.moveaxis(colours, 2, 0).tobytes()
    clean_pixels(dataset)
    assert dataset.PlanarConfiguration == 1
    assert_only_the_place_is(0, colours, dataset)


def test_pairs_that_share_their_chrominance(planted: list[str]) -> None:
    pairs = noise(20, 15, 4)
    dataset = ultrasound(noise(20, 30, 3), "YBR_FULL")
    dataset.PhotometricInterpretation, dataset.PixelData = "YBR_FULL_422", pairs.tobytes()
    clean_pixels(dataset)
    pairs[2:7, 2:6] = (0, 0, 128, 128)
    assert dataset.PixelData == pairs.tobytes()


def test_a_palette_is_masked_with_its_darkest_colour(planted: list[str]) -> None:
    pixels = noise(20, 30, top=4)
    dataset = ultrasound(pixels, "PALETTE COLOR")
    for name in ("Red", "Green", "Blue"):
        dataset.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [4, 0, 16])
        dataset.add_new(f"{name}PaletteColorLookupTableData", "OW", np.array([9000, 60000, 100, 30000], "<u2").tobytes())
    clean_pixels(dataset)
    assert_only_the_place_is(2, pixels, dataset)


def test_a_lossy_picture_is_stored_without_further_loss(planted: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = dcmread(str(get_testdata_file("examples_ybr_color.dcm", download=False)))
    del dataset.SequenceOfUltrasoundRegions
    before = values_of(dataset).copy()
    assert (dataset.file_meta.TransferSyntaxUID, dataset.PhotometricInterpretation) == (JPEGBaseline8Bit, "YBR_FULL_422")
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if keyword in dataset:
            del dataset[keyword]
    assert clean_pixels(dataset).frames_masked == len(before)
    assert dataset.file_meta.TransferSyntaxUID == JPEGLSLossless
    assert dataset.PhotometricInterpretation == "YBR_FULL"
    assert_only_the_place_is((0, 128, 128), before, dataset)
    assert (dataset.LossyImageCompression, dataset.LossyImageCompressionMethod) == ("01", "ISO_10918_1")
    assert dataset.LossyImageCompressionRatio > 1


def test_without_an_encoder_pixels_are_stored_plain(planted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(20, 30)
    dataset = ultrasound(pixels)
    compress(dataset, JPEGLSLossless, generate_instance_uid=False)

    def missing(*_: object, **__: object) -> None:
        raise RuntimeError("no encoder")

    monkeypatch.setattr(stored_pixels, "compress", missing)
    clean_pixels(dataset)
    assert dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert dataset.PixelData == values_of(dataset).tobytes()
    assert_only_the_place_is(0, pixels, dataset)


def test_a_word_found_in_one_frame_is_masked_in_all_and_equal_frames_are_read_once(
    planted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = noise(5, 20, 30)
    frames[0][PLACE] = 7  # nothing to read here, though the next frames show that something may stand there
    frames[3] = frames[1]
    read: list[bytes] = []
    find = text_finder.find_text
    monkeypatch.setattr(text_finder, "find_text", lambda picture: read.append(picture.tobytes()) or find(picture))
    dataset = ultrasound(frames, frames=5)
    assert clean_pixels(dataset) == PixelOutcome(5, 1)
    assert_only_the_place_is(0, frames, dataset)
    # Frames 1, 2 (twice, it had text), 3 and 5, each in two views.
    assert len(read) == 2 * 5


def test_outside_the_regions_everything_goes(planted: list[str]) -> None:
    pixels = noise(20, 30)
    dataset = ultrasound(pixels)
    data, graphics, nonsense = Dataset(), Dataset(), Dataset()
    for region, kind, corners in ((data, 1, (3, 1, 25, 15)), (graphics, 5, (0, 0, 29, 19)), (nonsense, 1, (9, 9, 2, 2))):
        region.RegionSpatialFormat = kind
        region.RegionLocationMinX0, region.RegionLocationMinY0 = corners[:2]
        region.RegionLocationMaxX1, region.RegionLocationMaxY1 = corners[2:]
    dataset.SequenceOfUltrasoundRegions = [graphics, data, nonsense]
    assert clean_pixels(dataset) == PixelOutcome(1, 1)
    expected = np.zeros_like(pixels)
    expected[1:16, 3:26] = pixels[1:16, 3:26]
    expected[PLACE] = 0
    assert np.array_equal(values_of(dataset), expected)


# --- what is refused ---------------------------------------------------------------------------------------------------


def refused(dataset: Dataset) -> str:
    before = dataset.to_json()
    with pytest.raises(PixelsNotCleanError) as caught:
        clean_pixels(dataset)
    assert dataset.to_json() == before
    assert "SMITH" not in str(caught.value)
    return str(caught.value)


def test_text_that_stays_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_pixels.StoredPixels, "paint", lambda *_: False)
    moving = iter(range(100))

    def find(_: object) -> list[TextBox]:
        left = next(moving)
        return [TextBox(left, 0, left + 1, 3, "SMITH", 0.9)]

    monkeypatch.setattr(text_finder, "find_text", find)
    assert "still text" in refused(ultrasound(noise(20, 300)))


@pytest.mark.parametrize("module", ["rapidocr", "onnxruntime"])
def test_without_text_recognition_the_image_is_refused(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text_finder._engine.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    reason = refused(ultrasound(noise(20, 30)))
    assert f"{module} is not installed" in reason
    assert "pip install" in reason


def test_a_failing_recognition_is_no_clean_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("SMITH")

    monkeypatch.setattr(text_finder, "find_text", fail)
    assert "RuntimeError" in refused(ultrasound(noise(20, 30)))


def test_what_cannot_be_decoded_or_painted_is_refused(planted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = ultrasound(noise(20, 30))
    bomb.Rows = bomb.Columns = 65535
    assert "larger" in refused(bomb) or "truncated" in refused(bomb)
    cut = ultrasound(noise(20, 30))
    cut.PixelData = cut.PixelData[:100]
    assert "truncated" in refused(cut)
    damaged = ultrasound(noise(70, 80))
    compress(damaged, JPEG2000Lossless, generate_instance_uid=False)
    damaged.PixelData = damaged.PixelData[:60] + bytes(len(damaged.PixelData) - 60)
    refused(damaged)
    long = ultrasound(noise(20, 30))
    long.PixelData += b"SMITH^ANNA"
    assert "longer than the image" in refused(long)
    deep = ultrasound(noise(20, 30, dtype="<u4"))
    assert "8 nor 16" in refused(deep)
    monkeypatch.setattr(stored_pixels, "MAX_BYTES", 599)
    assert "larger" in refused(ultrasound(noise(20, 30)))


# --- words that may stay -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["MI", "MI 0.8", "MI:1.2", "TIS<0.4 MI=0.8 AO=100%", "TIs 0.3", "TIb", "cm", "15 cm", "5cm", "Gain 52 dB", "60 dB",
     "2.5 MHz", "FR 32 Hz", "45 fps", "80 cm/s", "-60 cm/s", "0.9", "Depth 12,5 cm", "mm", "100 %"],
)  # fmt: skip
def test_harmless(text: str) -> None:
    assert is_harmless(text)


@pytest.mark.parametrize(
    "text",
    ["", "SMITH", "MI SMITH", "4711", "12", "67", "67 y", "67Y", "67 m", "12.03", "12/03/1956", "1956-03-12", "0311 1956",
     "12:30", "12345 mm", "1956 cm", "MM", "M", "MI 0.8 67", "MI 0.8 12.03.56", "D. Gain", "Dr. cm", "G 12", "MI " * 30,
     "0.1956", "03 12 56", "mi", "TIM", "12 cm 1956", "cm\nSMITH"],
)  # fmt: skip
def test_not_harmless(text: str) -> None:
    assert not is_harmless(text)


def test_large_pictures_are_read_in_overlapping_parts() -> None:
    picture = np.zeros((1600, 4000), np.uint8)
    parts = list(text_finder._parts(picture))
    covered = np.zeros(picture.shape, np.bool_)
    for top, left, part in parts:
        assert max(part.shape) <= text_finder._LARGEST
        covered[top : top + part.shape[0], left : left + part.shape[1]] = True
    assert covered.all()
    assert len(parts) == 2 * 3
