"""DICOM images as pictures: every way from stored values to gray levels, and what must not come out or go in."""

from __future__ import annotations

import io
import time
import zlib
from base64 import b64decode
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut, convert_color_space
from pydicom.uid import HTJ2K, MPEG2MPML, UID, HTJ2KLossless, HTJ2KLosslessRPCL, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from secure_media_processor.errors import ImageError, SmpError, UsageError
from secure_media_processor.medical.convert import decoding, folders
from secure_media_processor.medical.convert.folders import convert_to_png
from secure_media_processor.medical.convert.png import PngOptions, png_files
from secure_media_processor.medical.dicom.reader import Unreadable, read_dataset
from unit.medical.synthetic import CANARY, image, save, series

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)
# STRIPES by ojph_compress 0.9.0 (OpenJPH), without a loss (-reversible true) and with (-qstep 0.001), -num_decomps 2.
STRIPES = (np.add.outer(np.arange(24) * 37, np.arange(32) * 53) % 4096).astype(np.uint16)
STRIPES_LOSSLESS = b64decode(
    "/0//UQApQAAAAAAgAAAAGAAAAAAAAAAAAAAAIAAAABgAAAAAAAAAAAABCwEB/1AACAACAAAAB/9SAAwAAgABAAIEBEAB/1wACiBweHh4cHB4/2QA"
    "FgABT3BlbkpQSCBWZXIgMC45LjAu/5AACgAAAAAAwgAB/5PAAXqA/z/tV/7SVx7uYN/5yg1u/2gPnrPCwK895AP+1pducovHP/y8Z/3h75duN8vX"
    "GvQ2y/CAXp+5or+0fXFxb3UgB3EBAsRcDVlxkAqqIQAxvwDAAKyAAWkAbDabzWbninpxAncApCQSiUQikf76CEB79iEB7LoAwAFqQAF0ACiKoiiK"
    "oiiKovn+Cnp6enpwgnsASARBEARBEARBEARB/v9xgEIHv2EIHv2EIHv2EIHsswH/2Q=="
)
STRIPES_LOSSY = b64decode(
    "/0//UQApQAAAAAAgAAAAGAAAAAAAAAAAAAAAIAAAABgAAAAAAAAAAAABCwEB/1AACAACAAAAJP9SAAwAAgABAAIEBEAA/1wAESJv5mA1YDVgeFga"
    "WBpnv/9kABYAAU9wZW5KUEggVmVyIDAuOS4wLv+QAAoAAAAAAOcAAf+TwAL1AHMf9A1f6R8bV63xpCQHf3/0d+900PJYc3iBw9Wmogxj8xl/71uL"
    "+HypDY5zse78zUKM4Nx57mkzk4+c3mBJ6EDXAQLEXA1ZcZAKqiEAMb8AwAWvABboEJ7H8wA+j+cBfB7P+1klfyV+EK8LegAqSZIW4AK4AAtwARbg"
    "AizAHQhAp0whApu+teo9AMALoIAXSmSGCM4QwRkiOEMEZ4jgDNF5/JX8lfyV/JX8lf4ri3ABAgDCwWE4DIfhMByGw3AY/n/uAkp0ySnTJKdMkpu+"
    "teteteo1Af/Z"
)


def shown(dataset: Dataset, **options: object) -> np.ndarray:
    """Return the only picture of an image."""
    (picture,) = png_files(dataset, PngOptions(**options))
    return np.asarray(Image.open(io.BytesIO(picture.data)))


def linear(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, word for word."""
    out = np.empty(values.shape)
    for index, x in np.ndenumerate(values):
        if x <= center - 0.5 - (width - 1) / 2:
            out[index] = 0
        elif x > center - 0.5 + (width - 1) / 2:
            out[index] = 255
        else:
            out[index] = ((x - (center - 0.5)) / (width - 1) + 0.5) * 255
    return out


def near(left: np.ndarray, right: np.ndarray, by: float = 0.51) -> bool:
    return left.shape == right.shape and float(np.abs(left.astype(float) - right).max()) <= by


def test_a_window_after_the_rescale() -> None:
    ds = image(
        RAMP, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=[40, 500], WindowWidth=[400, 1500], BitsStored=12, HighBit=11
    )
    values = RAMP.astype(float) * 2 - 1024
    assert near(shown(ds), linear(values, 40, 400))
    assert near(shown(ds, view=2), linear(values, 500, 1500))
    with pytest.raises(ImageError, match="no view 3"):
        shown(ds, view=3)


def test_the_other_functions() -> None:
    ds = image(RAMP, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT")
    assert near(shown(ds), np.clip((RAMP - 2000.0) / 1000 + 0.5, 0, 1) * 255)
    ds.VOILUTFunction = "SIGMOID"
    assert near(shown(ds), 255 / (1 + np.exp(-4 * (RAMP - 2000.0) / 1000)))
    ds.VOILUTFunction = "PARABOLA"
    with pytest.raises(ImageError, match="unknown"):
        shown(ds)


def test_a_window_of_width_1_is_a_step_and_of_width_0_is_none() -> None:
    ds = image(RAMP, WindowCenter=2000, WindowWidth=1)
    assert near(shown(ds), (RAMP > 1999.5) * 255.0)
    ds.WindowWidth = 0
    with pytest.raises(ImageError, match="WindowWidth") as caught:
        shown(ds)
    assert "--view 0" in caught.value.hint
    assert shown(ds, view=0).max() == 255


def test_without_a_view_padding_does_not_count() -> None:
    pixels = np.array([[-2000, 0, 50, 100]], np.int16)
    assert shown(image(pixels, PixelPaddingValue=-2000)).tolist() == [[0, 0, 128, 255]]
    assert shown(image(pixels)).tolist()[0][0] == 0
    assert shown(image(pixels, PixelPaddingValue=-2000, PixelPaddingRangeLimit=0)).tolist() == [[0, 0, 0, 255]]
    assert shown(image(np.full((2, 2), 7, np.int16), PixelPaddingValue=7)).tolist() == [[0, 0], [0, 0]]


def test_monochrome1_and_inverse_are_inverted_once() -> None:
    plain = shown(image(RAMP))
    for elements in (
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PresentationLUTShape": "INVERSE"},
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
    ):
        assert (shown(image(RAMP, **elements)) == 255 - plain).all()


def lut(entries: list[int], first: int, bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries)
    return item


def test_a_voi_lut_comes_before_a_window_and_scales_over_its_bits() -> None:
    pixels = np.array([[0, 10, 11, 12, 200]], np.uint8)
    ds = image(pixels, VOILUTSequence=[lut([0, 512, 1023], 10, 10)], WindowCenter=6, WindowWidth=2)
    assert shown(ds).tolist() == [[0, 0, 128, 255, 255]]
    assert shown(ds, view=2).tolist() == [[0, 255, 255, 255, 255]]
    ds.VOILUTSequence = [lut([0, 256, 511], 10, 10)]
    assert shown(ds).tolist() == [[0, 0, 64, 127, 127]]  # the range of the output counts, not what occurs


def test_a_modality_lut() -> None:
    ds = image(
        np.array([[0, 1, 2]], np.uint8), ModalityLUTSequence=[lut([100, 300, 500], 0, 16)], WindowCenter=300.5, WindowWidth=401
    )
    assert shown(ds).tolist() == [[0, 128, 255]]


def test_signed_and_high_bits() -> None:
    pixels = np.array([[-1024, 0, 1023]], np.int16)
    assert shown(image(pixels, BitsStored=11, HighBit=10)).tolist() == [[0, 128, 255]]


def test_functional_groups_of_each_frame() -> None:
    def groups(slope: float, center: float) -> Dataset:
        group, rescale, window = Dataset(), Dataset(), Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept = slope, 0
        window.WindowCenter, window.WindowWidth = center, 101
        group.PixelValueTransformationSequence, group.FrameVOILUTSequence = [rescale], [window]
        return group

    pixels = np.array([[[0, 50, 100]], [[0, 5, 10]]], np.uint16)
    ds = image(pixels, frames=True, PerFrameFunctionalGroupsSequence=[groups(1, 50.5), groups(10, 50.5)])
    first, second = png_files(ds, PngOptions())
    assert first.data == second.data
    assert [p.frame for p in png_files(ds, PngOptions(frame=2))] == [2]
    with pytest.raises(ImageError, match="no frame 3"):
        list(png_files(ds, PngOptions(frame=3)))


def test_one_scale_for_all_frames() -> None:
    ds = image(np.array([[[0, 10]], [[20, 40]]], np.uint8), frames=True)
    pictures = [np.asarray(Image.open(io.BytesIO(p.data))).tolist() for p in png_files(ds, PngOptions())]
    assert pictures == [[[0, 64]], [[128, 255]]]


def test_16_bits_hold_what_was_measured() -> None:
    ds = image(RAMP, RescaleSlope=1, RescaleIntercept=-1024, BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1")
    (picture,) = png_files(ds, PngOptions(bits=16))
    assert picture.offset == 32768
    found = Image.open(io.BytesIO(picture.data))
    assert found.mode == "I;16"
    assert (np.asarray(found).astype(int) - picture.offset == RAMP.astype(int) - 1024).all()
    assert (shown(image(RAMP), bits=16) == RAMP).all()
    with pytest.raises(ImageError, match="fractions"):
        shown(image(RAMP, RescaleSlope=0.3, RescaleIntercept=0), bits=16)
    with pytest.raises(ImageError, match="do not fit"):
        shown(image(RAMP, RescaleSlope=100, RescaleIntercept=0), bits=16)


def test_colours() -> None:
    rgb = np.random.default_rng(1).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    assert (shown(image(rgb)) == rgb).all()
    ybr = convert_color_space(rgb, "RGB", "YBR_FULL")
    assert near(shown(image(ybr, PhotometricInterpretation="YBR_FULL")), rgb, 3)
    assert near(shown(image(rgb.astype(np.uint16) * 257)), rgb)
    palette = image(np.array([[0, 1, 2]], np.uint8), PhotometricInterpretation="PALETTE COLOR")
    for colour, values in (("Red", [0, 65535, 0]), ("Green", [0, 0, 32768]), ("Blue", [65535, 0, 0])):
        palette.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [3, 0, 16])
        palette.add_new(f"{colour}PaletteColorLookupTableData", "OW", np.array(values, "<u2").tobytes())
    assert shown(palette).tolist() == [[[0, 0, 255], [255, 0, 0], [0, 128, 0]]]
    with pytest.raises(ImageError, match="colour"):
        shown(image(rgb), bits=16)


def test_pydicom_agrees_on_real_images() -> None:
    for name in ("CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "MR_small_jpeg_ls_lossless.dcm"):
        ds = pydicom.dcmread(str(get_testdata_file(name, download=False)))
        if "WindowWidth" not in ds:
            ds.WindowCenter, ds.WindowWidth = 600, 1600
        values = apply_voi_lut(apply_modality_lut(ds.pixel_array, ds), ds)
        low, high = (end * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0)) for end in ends(ds))
        expected = (values - low) / (high - low) * 255
        assert near(shown(ds), 255 - expected if ds.PhotometricInterpretation == "MONOCHROME1" else expected, 1), name


def ends(ds: Dataset) -> tuple[int, int]:
    top = 1 << (ds.BitsStored - ds.PixelRepresentation)
    return (-top if ds.PixelRepresentation else 0), top - 1


def test_every_file_of_pydicom_is_a_picture_or_has_a_reason() -> None:
    root = Path(str(get_testdata_file("CT_small.dcm", download=False))).parent
    converted, reasons = 0, []
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        ds = read_dataset(path)
        if isinstance(ds, Unreadable):
            continue
        try:
            converted += bool(list(png_files(ds, PngOptions())))
        except ImageError as error:
            reasons.append(str(error))
    assert all("\n" not in reason and len(reason) < 120 for reason in reasons)
    assert converted > 75


def test_chunks_and_text(work: Path) -> None:
    (picture,) = png_files(image(RAMP), PngOptions())
    kinds, at = [], 8
    while at < len(picture.data):
        kinds.append(picture.data[at + 4 : at + 8])
        at += 12 + int.from_bytes(picture.data[at : at + 4], "big")
    assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"Rows": 60000, "Columns": 60000}, "larger than what is decoded"),
        ({"NumberOfFrames": 2**31 - 1}, "larger than what is decoded"),
        ({"Rows": 17}, "truncated: 512 of 544 bytes"),
        ({"Rows": 0}, "make no image"),
        ({"BitsAllocated": 13}, "make no image"),
        ({"PixelData": b""}, "empty"),
        ({"SamplesPerPixel": 2}, "make no image"),
        ({"PhotometricInterpretation": "CMYK"}, "not supported"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "make no values"),
    ],
)
def test_what_is_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        shown(image(RAMP, **change))


@pytest.mark.parametrize(
    ("syntax", "stream", "off"),
    [(HTJ2KLossless, STRIPES_LOSSLESS, 0), (HTJ2KLosslessRPCL, STRIPES_LOSSLESS, 0), (HTJ2K, STRIPES_LOSSY, 8)],
)
def test_high_throughput_jpeg_2000(work: Path, syntax: UID, stream: bytes, off: int) -> None:
    """What another program has encoded (PS3.5 section 10.18) is decoded to the same values, or nearly where it lost some."""
    dataset = image(STRIPES, BitsStored=12, HighBit=11)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].is_undefined_length = True
    save(dataset, "image.dcm")
    read = read_dataset(Path("image.dcm"))
    assert isinstance(read, Dataset)
    (pixels,) = decoding.decoded_frames(read, decoding.pixel_form(read))
    assert np.abs(pixels.astype(int) - STRIPES).max() <= off
    dataset.PixelData = encapsulate([stream[: len(stream) // 2]])
    with pytest.raises(ImageError):
        list(decoding.decoded_frames(dataset, decoding.pixel_form(dataset)))


def test_syntaxes_that_nothing_here_decodes() -> None:
    ds = image(RAMP)
    ds.file_meta.TransferSyntaxUID = MPEG2MPML
    with pytest.raises(ImageError, match="MPEG2"):
        shown(ds)
    del ds.file_meta.TransferSyntaxUID
    with pytest.raises(ImageError, match="does not say"):
        shown(ds)


def test_a_codestream_that_lies_about_its_size_is_refused_at_once() -> None:
    siz = (
        b"\xff\x4f\xff\x51"
        + bytes([0, 41, 0, 0])
        + b"\x7f\xff\xff\xff" * 2
        + bytes(8)
        + b"\x7f\xff\xff\xff" * 2
        + bytes(8)
        + b"\0\1\x0f\1\1"
    )
    jpeg = b"\xff\xd8\xff\xc0\0\x0b\x08\xff\xff\xff\xff\1\1\x11\0"
    for syntax, stream in ((JPEG2000Lossless, siz), (JPEGBaseline8Bit, jpeg)):
        ds = image(RAMP)
        ds.file_meta.TransferSyntaxUID = syntax
        ds.PixelData = pydicom.encaps.encapsulate([stream + bytes(len(stream) % 2)])
        ds["PixelData"].is_undefined_length = True
        start = time.monotonic()
        with pytest.raises(ImageError, match="another size"):
            shown(ds)
        assert time.monotonic() - start < 5
    with pytest.raises(ImageError, match="no header"):
        decoding._size_in_jpeg(b"\xff\xd8\xff\xda" + bytes(100))


def test_missing_frames_of_compressed_data() -> None:
    ds = image(np.stack([RAMP, RAMP]), frames=True)
    ds.compress(RLELossless)
    assert len(list(png_files(ds, PngOptions()))) == 2
    ds.NumberOfFrames = 3
    with pytest.raises(ImageError):
        list(png_files(ds, PngOptions()))


def test_a_folder(work: Path) -> None:
    series("in/KANARI/a")
    save(image(np.stack([RAMP, RAMP]), frames=True), "in/two.dcm")
    broken = save(image(RAMP, Rows=17), "in/broken")
    Path("in/notes.txt").write_text("hello")
    done = convert_to_png(Path("in"), Path("out"), PngOptions())
    assert {f.path for f in done.failed} >= {broken, Path("in/notes.txt")}
    names = sorted(str(p.relative_to("out")) for p in Path("out").rglob("*.png"))
    assert len(names) == len(done.written) == 8
    assert not any(CANARY in name for name in names)
    assert all(p.stat().st_mode & 0o777 == 0o600 for p in Path("out").rglob("*.png"))
    again = convert_to_png(Path("in"), Path("out"), PngOptions())
    assert not again.written
    assert sum("exists already" in f.reason for f in again.failed) == 7
    assert len(convert_to_png(Path("in"), Path("out"), PngOptions(), overwrite=True).written) == 8


def test_a_single_file(work: Path) -> None:
    one, two = save(image(RAMP), "one.dcm"), save(image(np.stack([RAMP, RAMP]), frames=True), "two.dcm")
    assert [w.path for w in convert_to_png(one, Path("one.png"), PngOptions()).written] == [Path("one.png")]
    with pytest.raises(UsageError, match="2 frames"):
        convert_to_png(two, Path("two.png"), PngOptions())
    convert_to_png(two, Path("two.png"), PngOptions(frame=2))
    assert len(convert_to_png(two, Path("both"), PngOptions()).written) == 2
    with pytest.raises(ImageError, match=r"broken: it is not a DICOM file"):
        Path("broken").write_bytes(zlib.compress(b"x" * 1000))
        convert_to_png(Path("broken"), Path("x.png"), PngOptions())
    with pytest.raises(UsageError, match="be written into"):
        Path("in").mkdir()
        convert_to_png(Path("in"), Path("in/out"), PngOptions())
    assert not Path("x.png").exists()


def test_a_frame_that_fails_takes_the_others_of_its_file_with_it(work: Path) -> None:
    ds = image(np.stack([RAMP, RAMP]), frames=True)
    ds.compress(RLELossless)
    data = bytearray(ds.PixelData)
    data[-400:-380] = bytes(20)  # within the second frame: its segment header stays, its runs do not
    first, _ = pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=2)
    ds.PixelData = pydicom.encaps.encapsulate([first, first[:64] + b"\x80\x80"])
    save(ds, "in/a")
    done = convert_to_png(Path("in"), Path("out"), PngOptions())
    assert not done.written
    assert "frame 2" in done.failed[0].reason
    assert not list(Path("out").rglob("*.png"))


def test_several_processes(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_WORTH_PROCESSES", 2)
    series("in")
    save(image(RAMP, Rows=17), "in/broken")
    done = convert_to_png(Path("in"), Path("out"), PngOptions(), jobs=2)
    assert len(done.written) == 6
    assert [f.path.name for f in done.failed] == ["broken"]
    assert all(isinstance(f.reason, str) and "\n" not in f.reason for f in done.failed)


def test_options_that_make_no_sense(work: Path) -> None:
    for options in (PngOptions(bits=12), PngOptions(view=-1), PngOptions(frame=0)):
        with pytest.raises(SmpError):
            convert_to_png(Path("x"), Path("y"), options)
