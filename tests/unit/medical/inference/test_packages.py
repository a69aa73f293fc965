"""Model packages: what is written is read, and what a stranger may have made is refused before it can do anything."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from pydantic import ValidationError

from conftest import left_in
from secure_media_processor.errors import (
    ExistsError,
    FileAccessError,
    IntegrityError,
    MissingError,
    ModelError,
    SmpError,
    UsageError,
)
from secure_media_processor.medical.inference import packages
from secure_media_processor.medical.inference.card import (
    CARD,
    ONNX,
    ORIENTATIONS,
    WEIGHTS,
    ModelCard,
    Normalization,
    UNetArchitecture,
    parse_card,
)
from secure_media_processor.medical.inference.packages import read_package, save_weights, write_package
from secure_media_processor.medical.inference.vectors import sampled, vector_input, verify_vector
from secure_media_processor.medical.inference.weights import read_header
from secure_media_processor.medical.unet.engines import Choice, choose
from secure_media_processor.medical.unet.models import UNetConfig
from secure_media_processor.medical.volume import ORIENTATIONS as ALL_ORIENTATIONS
from unit.medical.toy_models import card_of, onnx_bytes, unet_package

TORCH = Choice("torch", "float32", "cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a package."""
    folder = tmp_path_factory.mktemp("made") / "toy"
    unet_package(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def as_folder(files: dict[str, bytes], path: Path) -> Path:
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


def as_zip(files: dict[str, bytes], path: Path, *, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def changed(files: dict[str, bytes], change: object) -> dict[str, bytes]:
    """Return the files with another card: `change` gets its JSON."""
    card = json.loads(files[CARD])
    change(card)
    return files | {CARD: json.dumps(card).encode()}


def with_weights(files: dict[str, bytes], data: bytes) -> dict[str, bytes]:
    """Return the files with other weights, and their hash in the card."""
    new = changed(files, lambda card: card["files"].update({WEIGHTS: sha256(data).hexdigest()}))
    return new | {WEIGHTS: data}


def refused(path: Path, match: str, kind: type[SmpError] = ModelError) -> None:
    before = left_in(path.parent)
    with pytest.raises(kind, match=match):
        read_package(path)
    assert left_in(path.parent) == before


def test_folder_and_zip_are_one_package_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    first = unet_package(tmp_path / "a")
    second = unet_package(tmp_path / "b.zip")
    assert first.sha256 == second.sha256 == read_package(tmp_path / "a").sha256
    assert first.card == second.card
    unet_package(tmp_path / "c.zip")
    assert (tmp_path / "b.zip").read_bytes() == (tmp_path / "c.zip").read_bytes()
    assert first.card.test_vector is not None
    assert {name: sha256(data).hexdigest() for name, data in first.files.items()} == first.card.files
    weights = first.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in second.state_dict().items())


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    package = unet_package(tmp_path / "a")
    with pytest.raises(ExistsError):
        write_package(tmp_path / "a", package.card, weights=package.state_dict())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(FileAccessError, match="is not replaced"):
        write_package(tmp_path / "mine", package.card, weights=package.state_dict(), overwrite=True)
    (tmp_path / "a/thesis.txt").write_text("years of work")
    with pytest.raises(FileAccessError, match="is not replaced"):
        write_package(tmp_path / "a", package.card, weights=package.state_dict(), overwrite=True)
    assert not [name for name in left_in(tmp_path) if "smp-part" in name]


def test_what_does_not_fit_is_not_written(tmp_path: Path) -> None:
    package = unet_package(tmp_path / "a")
    other = card_of(UNetConfig("residual", 3, 1, 3, (4, 16)))
    for target in ("b", "b.zip"):
        with pytest.raises(ModelError, match="shape"):
            write_package(tmp_path / target, other, weights=package.state_dict())
        with pytest.raises(ModelError, match="no place"):
            write_package(tmp_path / target, package.card, weights=package.state_dict(), texts={"run.py": "print()"})
    with pytest.raises(UsageError):
        write_package(tmp_path / "b", package.card)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_a_licence_lies_beside_the_weights(tmp_path: Path) -> None:
    package = unet_package(tmp_path / "a")
    card = package.card.model_copy(update={"files": {}})
    again = write_package(tmp_path / "b", card, weights=package.state_dict(), texts={"NOTICE.txt": "by somebody"})
    assert again.files["NOTICE.txt"] == b"by somebody"


@pytest.mark.parametrize("name", ["model.pt", "weights.pth", "m.ckpt"])
def test_a_pickle_is_no_package(tmp_path: Path, name: str) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / name).write_bytes(pickle.dumps(Evil()))
    refused(tmp_path / name, "is not a package")
    as_folder({CARD: b"{}", name: pickle.dumps(Evil())}, tmp_path / "folder")
    refused(tmp_path / "folder", "can hold code")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda card: card.update(extra=1), "extra"),
        (lambda card: card.pop("licence"), "licence"),
        (lambda card: card.update(schema_version=2), "schema_version"),
        (lambda card: card.update(name="../../etc"), "name"),
        (lambda card: card.update(intended_use=5), "intended_use"),
        (lambda card: card["architecture"].update(kind="pickle"), "architecture"),
        (lambda card: card["architecture"].update(channels=[4, 10**9]), "architecture"),
        (lambda card: card["architecture"].update(in_channels=2), "in_channels"),
        (lambda card: card["architecture"].update(dimensions=2), "dimensions"),
        (lambda card: card["inputs"].update(orientation="ABC"), "orientation"),
        (lambda card: card["inputs"].update(spacing=[0, 1, 1]), "spacing"),
        (lambda card: card["inputs"].update(roi=[10**6] * 3), "roi"),
        (lambda card: card["inputs"]["normalization"].update(low=90, high=10), "low"),
        (lambda card: card["inputs"]["normalization"].update(mask="exec"), "mask"),
        (lambda card: card["outputs"].update(labels={"0": "a", "2": "b", "1x": "c"}), "labels"),
        (lambda card: card["outputs"].update(labels={"0": "a", "2": "b", "3": "c"}), "labels"),
        (lambda card: card["outputs"].update(postprocessing=[{"step": "shell", "labels": [1]}]), "postprocessing"),
        (lambda card: card["outputs"].update(postprocessing=[{"step": "open", "labels": [9], "mm": 1}]), "postprocessing"),
        (lambda card: card["files"].update({"../evil": "0" * 64}), "files"),
        (lambda card: card["test_vector"].update(shape=[1] * 2), "shape"),
    ],
)
def test_a_card_that_is_not_as_described(made: dict[str, bytes], tmp_path: Path, change: object, match: str) -> None:
    refused(as_folder(changed(made, change), tmp_path / "p"), match)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"nonsense", b"[" * 100_000, b'{"name": "a", "name": "b"}', b"\xff\xfe", b'{"schema_version": NaN}']
)
def test_a_card_that_is_no_card(made: dict[str, bytes], tmp_path: Path, data: bytes) -> None:
    refused(as_folder(made | {CARD: data}, tmp_path / "p"), "model.json")


def test_expressions_are_texts(made: dict[str, bytes], tmp_path: Path) -> None:
    """What other formats would run stays what it is: letters."""
    evil = f"$__import__('os').system('touch {tmp_path}/ran')"
    texts = {"intended_use": evil, "limitations": "${HOME}", "training_data": "@load", "licence": "%include"}
    new = changed(made, lambda card: card.update(texts))
    card = read_package(as_folder(new, tmp_path / "p")).card
    assert card.intended_use == evil
    assert card.limitations == "${HOME}"
    assert not (tmp_path / "ran").exists()


def test_tampered_files(made: dict[str, bytes], tmp_path: Path) -> None:
    data = bytearray(made[WEIGHTS])
    data[-1] ^= 1
    refused(as_folder(made | {WEIGHTS: bytes(data)}, tmp_path / "a"), "is not the file", IntegrityError)
    refused(as_folder(made | {"README.md": b"hello"}, tmp_path / "b"), "does not list", IntegrityError)
    refused(as_folder({CARD: made[CARD]}, tmp_path / "c"), "lacks", IntegrityError)
    refused(as_folder({WEIGHTS: made[WEIGHTS]}, tmp_path / "d"), "there is no model.json")
    refused(as_folder(made | {".hidden": b""}, tmp_path / "e"), "no place")
    refused(as_folder(made | {f"{n}.txt": b"" for n in range(20)}, tmp_path / "f"), "more than 16")
    refused(tmp_path / "gone", "cannot read", MissingError)


def test_what_is_no_file(made: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    path = as_folder({CARD: made[CARD]}, tmp_path / "link")
    (path / WEIGHTS).symlink_to(tmp_path / "secret")
    refused(path, "cannot read", FileAccessError)
    path = as_folder({CARD: made[CARD]}, tmp_path / "pipe")
    os.mkfifo(path / WEIGHTS)
    refused(path, "is not a file")
    path = as_folder(made, tmp_path / "deep")
    (path / "notes.txt").mkdir()
    refused(path, "is not a file")


# ------------------------------------------------------------------------------------------------------------------ zip


def entry(name: str, *, mode: int = 0o100644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    "name",
    ["../model.json", "/etc/passwd", "a/b.txt", "a\\b.txt", "C:x.txt", "..", "x.py", "CON.txt.exe", "a\u202etxt.md", "a/"],
)
def test_names_that_lead_elsewhere(made: dict[str, bytes], tmp_path: Path, name: str) -> None:
    as_zip(made, tmp_path / "p.zip")
    with zipfile.ZipFile(tmp_path / "p.zip", "a") as archive:
        archive.writestr(entry(name), b"evil")
    refused(tmp_path / "p.zip", "has no place|not a plain file")


def test_zips_that_are_not_plain(made: dict[str, bytes], tmp_path: Path) -> None:
    as_zip(made, tmp_path / "link.zip")
    with zipfile.ZipFile(tmp_path / "link.zip", "a") as archive:
        archive.writestr(entry("a.txt", mode=0o120777), b"/etc/passwd")
    refused(tmp_path / "link.zip", "not a plain file")
    as_zip(made, tmp_path / "twice.zip")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "twice.zip", "a") as archive:
        archive.writestr(CARD, made[CARD])
    refused(tmp_path / "twice.zip", "same name")
    as_zip(made | {"Model.JSON": b""}, tmp_path / "case.zip")
    refused(tmp_path / "case.zip", "same name")
    as_zip(made, tmp_path / "packed.zip", method=zipfile.ZIP_LZMA)
    refused(tmp_path / "packed.zip", "not supported")
    as_zip(made, tmp_path / "many.zip")
    with zipfile.ZipFile(tmp_path / "many.zip", "a") as archive:
        for number in range(20):
            archive.writestr(f"{number}.txt", b"")
    refused(tmp_path / "many.zip", "more than 16")
    data = bytearray(as_zip(made, tmp_path / "locked.zip").read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        while (start := data.find(mark, start + 1)) >= 0:
            data[start + place] |= 1
    (tmp_path / "locked.zip").write_bytes(data)
    refused(tmp_path / "locked.zip", "password")


def test_bombs(made: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_zip({CARD: made[CARD], WEIGHTS: bytes(4 * 1024**2)}, tmp_path / "bomb.zip", method=zipfile.ZIP_DEFLATED)
    refused(tmp_path / "bomb.zip", "times its size")
    as_zip(made | {"a.txt": bytes(2 * 1024**2)}, tmp_path / "text.zip")
    refused(tmp_path / "text.zip", "larger than")
    as_folder(made | {"a.txt": bytes(2 * 1024**2)}, tmp_path / "text")
    refused(tmp_path / "text", "larger than")
    monkeypatch.setattr(packages, "_MAX_WEIGHTS", 1000)
    refused(as_zip(made, tmp_path / "large.zip"), "more than|larger than")
    refused(as_folder(made, tmp_path / "large"), "larger than")


def test_a_zip_that_lies_about_sizes(made: dict[str, bytes], tmp_path: Path) -> None:
    data = bytearray(as_zip(made, tmp_path / "p.zip").read_bytes())
    start = data.find(b"PK\x01\x02")
    data[start + 24 : start + 28] = struct.pack("<I", 10)  # uncompressed size of the first entry
    (tmp_path / "p.zip").write_bytes(data)
    refused(tmp_path / "p.zip", ".")


@given(st.data())
def test_damage_is_never_a_surprise(
    tmp_path_factory: pytest.TempPathFactory, made: dict[str, bytes], data: st.DataObject
) -> None:
    """A zip with any byte changed, or cut anywhere, is refused, or is the package that it was."""
    folder = tmp_path_factory.mktemp("damage")
    whole = bytearray(as_zip(made, folder / "p.zip", method=zipfile.ZIP_DEFLATED).read_bytes())
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] ^= data.draw(st.integers(1, 255))
    else:
        del whole[data.draw(st.integers(0, len(whole) - 1)) :]
    (folder / "p.zip").write_bytes(whole)
    try:
        package = read_package(folder / "p.zip")
    except (ModelError, IntegrityError):
        return
    assert package.sha256 == sha256(made[CARD]).hexdigest()
    assert package.files[WEIGHTS] == made[WEIGHTS]


# -------------------------------------------------------------------------------------------------------------- weights


def header_of(data: bytes) -> tuple[dict[str, dict[str, object]], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def safetensors_of(header: object, numbers: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + numbers


def test_weights_that_are_not_those_of_the_architecture(made: dict[str, bytes], tmp_path: Path) -> None:
    package = unet_package(tmp_path / "a")
    weights = package.state_dict()
    name = next(iter(weights))
    cases = {
        "is missing": {key: value for key, value in weights.items() if key != name},
        "no place": weights | {"backdoor": torch.zeros(1)},
        "the shape": weights | {name: torch.zeros(2, 2)},
        "the type": weights | {name: weights[name].double()},
    }
    for number, (match, tensors) in enumerate(cases.items()):
        refused(as_folder(with_weights(made, save_weights(tensors)), tmp_path / f"p{number}"), match)
    for value in (float("nan"), float("inf")):
        bad = weights | {name: torch.full_like(weights[name], value)}
        path = as_folder(with_weights(made, save_weights(bad)), tmp_path / f"{value}")
        with pytest.raises(ModelError, match="not finite"):
            read_package(path).state_dict()
        with pytest.raises(ModelError, match="not finite"):
            write_package(tmp_path / "bad", package.card.model_copy(update={"test_vector": None}), weights=bad)
    assert not (tmp_path / "bad").exists()


def test_halves_are_allowed(tmp_path: Path) -> None:
    package = unet_package(tmp_path / "a")
    halves = {name: tensor.half() for name, tensor in package.state_dict().items()}
    card = package.card.model_copy(update={"files": {}, "test_vector": None})
    again = write_package(tmp_path / "b", card, weights=halves)
    assert {tensor.dtype for tensor in again.state_dict().values()} == {torch.float16}
    found = verify_vector(again, TORCH)
    assert found is not None
    assert found.passed


def test_headers_that_lie(made: dict[str, bytes], tmp_path: Path) -> None:
    header, numbers = header_of(made[WEIGHTS])
    header.pop("__metadata__", None)
    name = next(iter(header))
    begin, end = header[name]["data_offsets"]
    other = {
        "huge": b"\xff" * 8 + made[WEIGHTS][8:],
        "short": made[WEIGHTS][:5],
        "not json": struct.pack("<Q", 4) + b"evil",
        "a list": safetensors_of([1], numbers),
        "trailing": made[WEIGHTS] + b"x",
        "cut": made[WEIGHTS][:-1],
        "outside": safetensors_of(header | {name: header[name] | {"data_offsets": [begin + 2**39, end + 2**39]}}, numbers),
        "negative": safetensors_of(header | {name: header[name] | {"shape": [-1]}}, numbers),
        "fields": safetensors_of(header | {name: header[name] | {"code": "x"}}, numbers),
        "dtype": safetensors_of(header | {name: header[name] | {"dtype": "O"}}, numbers),
        "floats": safetensors_of(header | {name: header[name] | {"shape": [1.5]}}, numbers),
        "many axes": safetensors_of({"x": {"dtype": "U8", "shape": [1] * 100, "data_offsets": [0, 1]}}, b"1"),
    }
    for number, data in enumerate(other.values()):
        refused(as_folder(with_weights(made, data), tmp_path / f"p{number}"), WEIGHTS)
    two = {
        "a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
        "b": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]},
    }
    with pytest.raises(ModelError, match="overlap"):
        read_header(safetensors_of(two, b"123"))
    with pytest.raises(ModelError, match="twice"):
        read_header(struct.pack("<Q", 15) + b'{"a": 1,"a": 2}')


# ----------------------------------------------------------------------------------------------------------------- onnx


def onnx_package(tmp_path: Path, data: bytes, **fields: object) -> Path:
    """Write a package around a graph by hand, so that a bad one gets that far."""
    card = card_of(None, **fields).model_copy(update={"files": {ONNX: sha256(data).hexdigest()}})
    return as_folder({CARD: card.to_bytes(), ONNX: data}, tmp_path / "p")


def test_a_graph_of_standard_operators(tmp_path: Path) -> None:
    package = write_package(tmp_path / "a", card_of(None), onnx=onnx_bytes())
    for engine in ("onnx", "openvino"):
        found = verify_vector(package, choose(package, engine=engine, precision="float32", device="cpu"))
        assert found is not None
        assert found.passed
    with pytest.raises(UsageError, match="torch does not run"):
        choose(package, engine="torch")
    with pytest.raises(ModelError, match="ONNX graph"):
        package.state_dict()
    with pytest.raises(ModelError, match=r"no model\.onnx"):
        unet_package(tmp_path / "b").onnx_bytes()


def external() -> bytes:
    model = onnx.load_model_from_string(onnx_bytes())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return model.SerializeToString()


def hidden_external() -> bytes:
    """External numbers in a constant within a branch."""
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=tensor)],
        "branch",
        [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])],
    )
    return in_branch(inner)


def in_branch(inner: onnx.GraphProto) -> bytes:
    model = onnx.load_model_from_string(onnx_bytes())
    condition = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    model.graph.initializer.append(condition)
    model.graph.node.append(helper.make_node("If", ["yes"], ["z"], then_branch=inner, else_branch=inner))
    return model.SerializeToString()


def with_function() -> bytes:
    model = onnx.load_model_from_string(onnx_bytes())
    node = helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(helper.make_function("mine", "F", ["a"], ["b"], [node], [helper.make_opsetid("", 18)]))
    return model.SerializeToString()


def looping() -> bytes:
    inner = helper.make_graph([helper.make_node("Loop", ["a", "b"], ["c"])], "branch", [], [])
    return in_branch(inner)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (external, "another file"),
        (hidden_external, "another file"),
        (with_function, "functions"),
        (looping, "Loop"),
        (
            lambda: onnx_bytes(domain="com.evil", opsets=[helper.make_opsetid("", 18), helper.make_opsetid("com.evil", 1)]),
            "evil",
        ),
        (lambda: onnx_bytes(op="RandomNormalLike"), "RandomNormalLike"),
        (lambda: onnx_bytes(opsets=[helper.make_opsetid("", 5)]), "operators from"),
        (lambda: onnx_bytes(opsets=[helper.make_opsetid("", 999)]), "operators from"),
        (lambda: onnx_bytes(op="NoSuchThing"), "standard"),
        (lambda: onnx_bytes(classes=4), "4 classes"),
        (lambda: onnx_bytes(spatial=("i", "j")), "5 axes"),
        (lambda: b"nonsense", "damaged"),
    ],
)
def test_graphs_that_are_refused(tmp_path: Path, data: object, match: str) -> None:
    refused(onnx_package(tmp_path, data()), match)


def test_a_graph_under_the_name_of_weights(made: dict[str, bytes], tmp_path: Path) -> None:
    data = onnx_bytes()
    new = changed(made, lambda card: card["files"].update({ONNX: sha256(data).hexdigest()}))
    refused(as_folder(new | {ONNX: data}, tmp_path / "p"), "goes with")


# ---------------------------------------------------------------------------------------------------------- self-test


def test_the_input_of_the_self_test_is_that_of_the_format_page() -> None:
    """Written out here once more: PCG64 is the recurrence of the paper, XSL-RR."""
    sequence = np.random.SeedSequence(7).generate_state(4, np.uint64)
    mask = (1 << 128) - 1
    increment = ((int(sequence[2]) << 64 | int(sequence[3])) << 1 | 1) & mask
    multiplier = 0x2360ED051FC65DA44385DF649FCCF645
    state = (increment + (int(sequence[0]) << 64 | int(sequence[1]))) * multiplier + increment & mask
    expected = []
    for _ in range(24):
        state = (state * multiplier + increment) & mask
        folded, turn = (state >> 64 ^ state) & (2**64 - 1), state >> 122
        number = (folded >> turn | folded << (64 - turn)) & (2**64 - 1)
        expected.append((number >> 40) / 2**23 - 1)
    made = vector_input(7, 1, (2, 3, 4))
    assert made.shape == (1, 1, 2, 3, 4)
    assert made.dtype == np.float32
    assert made.ravel().tolist() == expected
    assert sampled(np.arange(10, dtype=np.float32), 4).tolist() == [0, 3, 6, 9]


def test_other_weights_fail_the_self_test(made: dict[str, bytes], tmp_path: Path) -> None:
    package = unet_package(tmp_path / "a")
    other = {name: tensor * 1.1 for name, tensor in package.state_dict().items()}
    found = verify_vector(read_package(as_folder(with_weights(made, save_weights(other)), tmp_path / "p")), TORCH)
    assert found is not None
    assert not found.passed


def test_cards_as_objects() -> None:
    assert set(ALL_ORIENTATIONS) == ORIENTATIONS
    config = UNetConfig("attention", 2, 3, 5, (8, 16, 32))
    assert UNetArchitecture.of(config).config() == config
    assert UNetArchitecture.of(config).multiple == config.factor
    card = card_of(config, roi=(32, 32), classes=5, channels=("a", "b", "c"))
    assert parse_card(card.to_bytes()) == card
    assert list(card.labels) == [0, 1, 2, 3, 4]
    with pytest.raises(ValidationError):
        ModelCard(**(card.model_dump() | {"surprise": 1}))
    with pytest.raises(ValidationError):
        Normalization(method="zscore", low=float("nan"))


def test_the_files_are_read_once(made: dict[str, bytes], tmp_path: Path) -> None:
    """What was hashed is what is used, whatever becomes of the file."""
    path = as_folder(made, tmp_path / "p")
    package = read_package(path)
    (path / WEIGHTS).write_bytes(b"replaced")
    assert package.state_dict()
    assert io.BytesIO(package.files[WEIGHTS]).read() == made[WEIGHTS]
