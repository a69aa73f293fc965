"""Reading and writing model packages: a folder or a zip with `model.json`, weights, and nothing that could run.

What a stranger made is bounded before it is read, hashed before it is used, and never evaluated. There is no pickle in it:
weights are safetensors, whose names, shapes and types are compared with the architecture before the network is built, or an
ONNX graph of standard operators. docs/format/model-package.md is the specification.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import zipfile
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from secure_media_processor.core.files import atomic_write, os_errors, read_full, write_file
from secure_media_processor.errors import (
    ExistsError,
    FileAccessError,
    IntegrityError,
    MissingExtraError,
    ModelError,
    UsageError,
)
from secure_media_processor.medical.inference.card import (
    CARD,
    FILE_NAME,
    ONNX,
    WEIGHTS,
    ClassifierArchitecture,
    OnnxArchitecture,
    parse_card,
)
from secure_media_processor.medical.inference.vectors import vector_of
from secure_media_processor.medical.inference.weights import check_weights, read_header

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from secure_media_processor.medical.inference.card import ModelCard

_MAX_FILES: Final = 16
_MAX_CARD: Final = 1024**2
_MAX_TEXT: Final = 1024**2
_MAX_WEIGHTS: Final = 2 * 1024**3 - 1  # also the most that ONNX can hold in one file
_MAX_RATIO: Final = 100
_SMALL: Final = 1024**2  # a file of up to this size may be compressed as well as it can be
# What may lie beside card and weights: licences and notices, which are never read here.
_TEXT_SUFFIXES: Final = (".txt", ".md")
_PICKLES: Final = (".pt", ".pth", ".pkl", ".ckpt", ".bin", ".h5", ".keras")
_ZIP_TIME: Final = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Package:
    """A model package that was read, and whose files are what its card says."""

    path: Path
    card: ModelCard
    sha256: str
    """Of `model.json`, which holds the hashes of all other files: it names the package as a whole."""
    files: Mapping[str, bytes] = field(repr=False)
    """Name → content, without `model.json`."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights as they are stored, on the CPU.

        Raises:
            ModelError: the package holds an ONNX graph instead, or a weight is not a finite number.
        """
        if WEIGHTS not in self.files:
            raise ModelError(f"{self.path} holds an ONNX graph, not weights", hint="use --engine openvino or onnx")
        return load_weights(self.files[WEIGHTS])

    def onnx_bytes(self) -> bytes:
        """Return the ONNX graph. Raises ModelError if there is none."""
        if ONNX not in self.files:
            raise ModelError(f"{self.path} holds no {ONNX}", hint="use --engine torch or openvino")
        return self.files[ONNX]


def read_package(path: Path) -> Package:
    """Read a model package and check all of it but the numbers in the weights, which `state_dict` looks at.

    Args:
        path: A folder, or a file that ends in .zip.

    Raises:
        ModelError: it is not a package, or holds what it must not.
        IntegrityError: a file is not the one that the card names.
        MissingError, FileAccessError: it cannot be read.
    """
    with os_errors(f"read {path}"):
        mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        files = _read_folder(path)
    elif path.suffix.lower() == ".zip":
        files = _read_zip(path)
    else:
        raise ModelError(f"{path} is not a package: that is a folder or a .zip with {CARD}", hint=_hint(path))
    card_data = files.pop(CARD, None)
    if card_data is None:
        raise ModelError(f"{path} is not a package: there is no {CARD} in it")
    card = parse_card(card_data)
    _check(path, card, files)
    return Package(path, card, sha256(card_data).hexdigest(), files)


def write_package(
    target: Path,
    card: ModelCard,
    *,
    weights: Mapping[str, Tensor] | None = None,
    onnx: bytes | None = None,
    texts: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Package:
    """Write a model package, all or nothing, and read it back. The same input gives the same bytes.

    Args:
        target: A folder, or a file that ends in .zip. A folder is replaced only if it is a package.
        card: What is said of the model; `files` is filled in here, and `test_vector` if there is none.
        weights: Name → tensor, for a U-Net; stored in the type they have.
        onnx: The graph, for the architecture "onnx".
        texts: File name, such as LICENCE.txt → text, which is stored beside them.
        overwrite: Whether a package that exists is replaced.

    Raises:
        UsageError: not exactly one of `weights` and `onnx` is given.
        ModelError: what was given does not fit the card.
        ExistsError, NoSpaceError, FileAccessError: as atomic_write.
    """
    if (weights is None) == (onnx is None):
        raise UsageError("a package has either weights or an ONNX graph")
    files = {name: text.encode() for name, text in sorted((texts or {}).items())}
    files |= {WEIGHTS: save_weights(weights)} if weights is not None else {ONNX: onnx or b""}
    hashes = {name: sha256(data).hexdigest() for name, data in sorted(files.items())}
    complete = card.model_copy(update={"files": hashes})
    _check(target, complete, files)
    if complete.test_vector is None and (
        complete.task == "segment" or isinstance(complete.architecture, ClassifierArchitecture)
    ):
        vector = vector_of(Package(target, complete, "", files))
        complete = complete.model_copy(update={"test_vector": vector})
    files = {CARD: complete.to_bytes(), **dict(sorted(files.items()))}
    if target.suffix.lower() == ".zip":
        with atomic_write(target, overwrite=overwrite) as file:
            _write_zip(file, files)
    else:
        _write_folder(target, files, overwrite=overwrite)
    return read_package(target)


def load_weights(data: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file. Raises ModelError if one of them has a number that is not finite."""
    safetensors = _safetensors()
    import torch  # noqa: PLC0415 - heavy

    read_header(data)  # bounded, before the library sees it
    tensors: dict[str, Tensor] = safetensors.load(data)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"the weights {name} have values that are not finite numbers")
    return tensors


def save_weights(weights: Mapping[str, Tensor]) -> bytes:
    """Return a safetensors file with these tensors."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    data: bytes = _safetensors().save(plain)
    return data


def _safetensors() -> Any:
    try:
        import safetensors.torch  # noqa: PLC0415 - an extra
    except ImportError as error:
        name = error.name or "safetensors"
        raise MissingExtraError(f"{name} is not installed", hint="pip install 'secure-media-processor[ml]'") from None
    return safetensors.torch


def _hint(path: Path) -> str | None:
    if path.suffix.lower() in _PICKLES:
        return "such a file can hold code and is not opened; a package holds weights as safetensors or ONNX"
    return None


def _limit(name: str) -> int:
    """Return how many bytes a file may have. Raises ModelError for a name that no package has."""
    if name == CARD:
        return _MAX_CARD
    if name in (WEIGHTS, ONNX):
        return _MAX_WEIGHTS
    if re.fullmatch(FILE_NAME, name) and name.endswith(_TEXT_SUFFIXES):
        return _MAX_TEXT
    if name.lower().endswith(_PICKLES):
        hint = "a package holds weights as safetensors or ONNX"
        raise ModelError(f"the package holds {name[:80]!a}, which can hold code", hint=hint)
    raise ModelError(f"the package holds {name[:80]!a}, which has no place in one")


def _check(path: Path, card: ModelCard, files: Mapping[str, bytes]) -> None:
    """Raise unless the files, without the card, are what the card says, and may be used."""
    for name in files:
        _limit(name)
    _check_files(path, card, files)
    if isinstance(card.architecture, OnnxArchitecture):
        from secure_media_processor.medical.inference.onnx_graph import check_graph  # noqa: PLC0415 - brings onnx

        check_graph(files[ONNX], card)
    else:
        check_weights(files[WEIGHTS], card)


def _check_files(path: Path, card: ModelCard, files: Mapping[str, bytes]) -> None:
    """Raise unless the files are those of the card, to the byte, and those that the architecture needs."""
    unlisted, absent = files.keys() - card.files.keys(), card.files.keys() - files.keys()
    if unlisted or absent:
        what = f"holds {min(unlisted)}, which {CARD} does not list" if unlisted else f"lacks {min(absent)}"
        raise IntegrityError(f"{path} {what}", hint="get the package again from where it came from")
    for name, data in files.items():
        if sha256(data).hexdigest() != card.files[name]:
            raise IntegrityError(f"{path}: {name} is not the file that {CARD} names", hint="get the package again")
    needed, other = (ONNX, WEIGHTS) if isinstance(card.architecture, OnnxArchitecture) else (WEIGHTS, ONNX)
    if needed not in files or other in files:
        raise ModelError(f"{path}: its architecture goes with {needed} and not with {other}")


# ------------------------------------------------------------------------------------------------------------- folders


def _read_folder(path: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    with os_errors(f"read {path}"):
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry, _ in zip(entries, range(_MAX_FILES + 1), strict=False))
        if CARD not in names:
            raise ModelError(f"{path} is not a package: there is no {CARD} in it")
        if len(names) > _MAX_FILES:
            raise ModelError(f"{path} holds more than {_MAX_FILES} files")
        for name in names:
            limit = _limit(name)
            descriptor = os.open(path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                os.close(descriptor)
                raise ModelError(f"{path / name} is not a file")
            with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor has no path
                files[name] = _read_bounded(file, status.st_size, limit, name)
    return files


def _read_bounded(file: Any, size: int, limit: int, name: str) -> bytes:
    """Return what is in `file`, which says that it has `size` bytes."""
    if size > limit:
        raise ModelError(f"{name} is larger than {limit} bytes")
    buffer = bytearray(size + 1)
    if read_full(file, memoryview(buffer)) != size:
        raise ModelError(f"{name} has not the size that it says")
    buffer.pop()
    return bytes(buffer)


def _write_folder(target: Path, files: Mapping[str, bytes], *, overwrite: bool) -> None:
    """Write the files into a new folder beside `target`, and give it that name when they are on the disk."""
    target = target.absolute()
    with os_errors(f"write {target}"):
        if (target.exists() or target.is_symlink()) and not overwrite:
            raise ExistsError(f"{target} exists already")
        if target.exists() and not _is_package(target):
            raise FileAccessError(f"{target} is not a model package and is not replaced", hint="name another folder")
        part = target.parent / f".{secrets.token_hex(8)}.smp-part"
        aside = target.parent / f".{secrets.token_hex(8)}.smp-part"
        try:
            part.mkdir(mode=0o700)
            for name, data in files.items():
                write_file(part / name, data)
            if target.exists():
                target.rename(aside)
            try:
                part.rename(target)
            except BaseException:
                if aside.exists():
                    aside.rename(target)
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(aside, ignore_errors=True)


def _is_package(folder: Path) -> bool:
    """Return whether there is nothing in `folder` but what a package there has a name for."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    try:
        with (folder / CARD).open("rb") as file:
            card = parse_card(file.read(_MAX_CARD + 1))
    except (OSError, ModelError):
        return False
    return {path.name for path in folder.iterdir()} <= {CARD, *card.files}


# ---------------------------------------------------------------------------------------------------------------- zips


def _read_zip(path: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    with os_errors(f"read {path}"), path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                for entry in _entries(path, archive):
                    with archive.open(entry) as member:
                        files[entry.filename] = _read_bounded(member, entry.file_size, _limit(entry.filename), entry.filename)
        except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, ValueError, RuntimeError) as error:
            raise ModelError(f"{path} is damaged: it cannot be read as a zip") from error
        except Exception as error:
            if type(error).__module__ == "zlib":
                raise ModelError(f"{path} is damaged: it cannot be read as a zip") from error
            raise
    return files


def _entries(path: Path, archive: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    """Yield the entries, each checked as far as the directory of the zip can tell."""
    entries = archive.infolist()
    if len(entries) > _MAX_FILES:
        raise ModelError(f"{path} holds more than {_MAX_FILES} files")
    names = [entry.filename for entry in entries]
    if len({name.casefold() for name in names}) < len(names):
        raise ModelError(f"{path} holds two files with the same name")
    if sum(entry.file_size for entry in entries) > _MAX_WEIGHTS:
        raise ModelError(f"{path} would unpack to more than {_MAX_WEIGHTS} bytes")
    for entry in entries:
        limit = _limit(entry.filename)  # no separator, no dots in a row, no drive passes its pattern
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if entry.is_dir() or kind not in (0, stat.S_IFREG) or entry.orig_filename != entry.filename:
            raise ModelError(f"{path}: {entry.filename[:80]!a} is not a plain file")
        if entry.flag_bits & 0x1:
            raise ModelError(f"{path}: {entry.filename} is encrypted with a password", hint="`smp encrypt` the whole package")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ModelError(f"{path}: {entry.filename} is compressed in a way that is not supported")
        if entry.file_size > limit:
            raise ModelError(f"{path}: {entry.filename} is larger than {limit} bytes")
        if entry.file_size > _SMALL and entry.file_size > _MAX_RATIO * entry.compress_size:
            raise ModelError(f"{path}: {entry.filename} would unpack to more than {_MAX_RATIO} times its size")
        yield entry


def _write_zip(file: BinaryIO, files: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _ZIP_TIME)
            entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, data)
