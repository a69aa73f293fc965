"""Settings: flags > environment SMP_* > project file smp.toml > user file > defaults.

A project file is read from the working directory only, and only after its user has said `smp config trust` to its contents:
a setting names keys and logs, and a file that came with somebody's data must not choose those.
"""

from __future__ import annotations

import json
import os
import stat
import tomllib
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import platformdirs
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from secure_media_processor.core.files import make_private_folder, open_source, os_errors, read_full, write_file
from secure_media_processor.errors import ConfigError, MissingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_APP = "secure-media-processor"
_PROJECT_FILE = "smp.toml"
_ENV_PREFIX = "SMP_"
_MAX_CONFIG = 64 * 1024
_PATHS = {"keystore", "key_file", "stores", "cloud_state", "audit_log"}


def _not_empty(value: object) -> object:
    if value == "" or (isinstance(value, str) and "\0" in value):
        raise ValueError("it is not a path")
    return value


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except (RuntimeError, FileNotFoundError):  # no such user, no home, or the working directory is gone
        raise ValueError("it cannot be made an absolute path") from None


AbsolutePath = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(_absolute)]


def _home(find: Callable[[str], Path], name: str) -> Path:
    try:
        return find(_APP) / name
    except RuntimeError:
        hint = "set HOME, or the settings keystore and audit_log"
        raise ConfigError("this user has no home folder", hint=hint) from None


class Settings(BaseModel):
    """Every setting of the program. Made by get_settings, not by hand."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    keystore: AbsolutePath = Field(
        default_factory=lambda: _home(platformdirs.user_data_path, "keys"),
        description="Folder of the keys.",
    )
    key_file: AbsolutePath | None = Field(
        default=None,
        description="Key file to use instead of the keystore.",
    )
    stores: AbsolutePath = Field(
        default_factory=lambda: _home(platformdirs.user_config_path, "stores.json"),
        description="File that lists your stores; `smp cloud add` writes it.",
    )
    cloud_state: AbsolutePath = Field(
        default_factory=lambda: _home(platformdirs.user_state_path, "cloud"),
        description="Folder where this machine keeps the index it has seen in your stores, and unfinished uploads.",
    )
    models: AbsolutePath = Field(
        default_factory=lambda: _home(platformdirs.user_data_path, "models"),
        description="Folder of installed model packages; `smp medical model install` writes there.",
    )
    audit_log: AbsolutePath = Field(
        default_factory=lambda: _home(platformdirs.user_state_path, "audit.jsonl"),
        description="File of the audit log; its key lies beside it.",
    )
    audit_on_failure: Literal["stop", "warn"] = Field(
        default="stop",
        description="What to do when the audit log cannot be written: stop before doing anything, or warn and go on.",
    )


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and where each value came from."""

    settings: Settings
    origins: Mapping[str, str]
    """Name of the setting → "flag", "environment SMP_…", the path of a file, or "default"."""
    sources: tuple[str, ...]
    """The files and other places that were looked at and held something, strongest first."""


def user_file() -> Path:
    """Return where the user's own settings are looked for."""
    return _home(platformdirs.user_config_path, "config.toml")


def load(flags: Mapping[str, Any] | None = None) -> Loaded:
    """Read all sources.

    Raises:
        ConfigError: an unknown setting, a value that does not fit, or a project file that is not trusted.
    """
    environment = {name: os.environ[variable] for name, variable in _variables().items() if os.environ.get(variable)}
    layers: list[tuple[str, Mapping[str, Any]]] = [("flag", flags or {}), ("environment", environment)]
    for path, needs_trust in ((project_file(), True), (user_file(), False)):
        data = _data(path)
        if data is not None:
            if needs_trust:
                _refuse_untrusted(path, data)
            layers.append((str(path), _parse(path, data)))
    values: dict[str, Any] = {}
    origins = dict.fromkeys(Settings.model_fields, "default")
    for origin, layer in reversed(layers):
        values |= layer
        origins |= {name: _origin(origin, name) for name in layer}
    try:
        settings = Settings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise _unknown_setting(name, origins[name]) from None
        problem = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"the setting {name} ({origins[name]}) does not fit: {problem[:1].lower()}{problem[1:]}") from None
    return Loaded(settings, origins, tuple(origin for origin, layer in layers if layer))


def project_file() -> Path:
    """Return where the settings of the working directory are looked for."""
    with os_errors("find the working directory"):
        return Path.cwd() / _PROJECT_FILE


def trust(path: Path) -> None:
    """Let the project file `path` be read from now on, as long as its contents are what they are now.

    Raises:
        MissingError: there is no such file.
        ConfigError: it is no settings file.
    """
    data = _data(path)
    if data is None:
        raise MissingError(f"there is no file {path}")
    _parse(path, data)
    trusted = _trusted() | {str(path): sha256(data).hexdigest()}
    make_private_folder(_trust_file().parent)
    write_file(_trust_file(), json.dumps(trusted, indent=1, sort_keys=True).encode(), overwrite=True)


@cache
def get_loaded() -> Loaded:
    """Return the settings of this process with their origins; read once."""
    return load(_flags)


def get_settings() -> Settings:
    """Return the settings of this process; read once. Tests put others in place with override_settings."""
    return get_loaded().settings


def set_flags(flags: Mapping[str, str]) -> None:
    """Put settings from the command line above all other sources, before the first get_settings."""
    _flags.clear()
    _flags.update(flags)
    get_loaded.cache_clear()


@contextmanager
def override_settings(**values: Any) -> Iterator[Settings]:
    """Within the block, get_settings returns the usual settings with these `values`."""
    before = dict(_flags)
    set_flags(before | values)
    try:
        yield get_settings()
    finally:
        set_flags(before)


_flags: dict[str, Any] = {}


def _origin(layer: str, name: str) -> str:
    return f"environment {_variables()[name]}" if layer == "environment" else layer


def _variables() -> dict[str, str]:
    """Return setting → the variable of the environment that gives it."""
    return {name: f"{_ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}


def _trust_file() -> Path:
    return user_file().with_name("trusted.json")


def _trusted() -> dict[str, str]:
    """Return path → SHA-256 of the project files that the user trusts. What cannot be read trusts nobody."""
    data = _data(_trust_file())
    try:
        trusted = json.loads(data or b"{}")
    except ValueError:
        return {}
    return trusted if isinstance(trusted, dict) else {}


def _refuse_untrusted(path: Path, data: bytes) -> None:
    if _trusted().get(str(path)) != sha256(data).hexdigest():
        hint = "read it; if you agree with what it says, `smp config trust`; if not, work in another folder"
        raise ConfigError(f"{path} is new or was changed, and you have not said that you trust it", hint=hint)


def _data(path: Path) -> bytes | None:
    """Return the contents of a settings file; None if there is none. Refuses what other users may change."""
    try:
        file = open_source(path)
    except MissingError:
        return None
    with file, os_errors(f"read {path}"):
        status = os.fstat(file.fileno())
        buffer = bytearray(_MAX_CONFIG + 1)
        size = read_full(file, memoryview(buffer))
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        hint = f"check what is in it, then make it yours alone: chown it and chmod go-w {path}"
        raise ConfigError(f"{path} belongs to, or can be changed by, another user", hint=hint)
    if size > _MAX_CONFIG:
        raise ConfigError(f"{path} is too large for a settings file")
    return bytes(buffer[:size])


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    """Return the settings in a TOML file; relative paths in it count from its folder."""
    try:
        values = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        hint = "each line is NAME = VALUE; texts stand in quotation marks"
        raise ConfigError(f"{path} is not valid TOML: {error}", hint=hint) from None
    for name in values:
        if name not in Settings.model_fields:
            raise _unknown_setting(name, str(path))
    return {name: _from_folder(name, value, path.parent) for name, value in values.items()}


def _unknown_setting(name: str, origin: str) -> ConfigError:
    hint = f"the settings are {', '.join(Settings.model_fields)}"
    return ConfigError(f"there is no setting {name} ({origin})", hint=hint)


def _from_folder(name: str, value: Any, folder: Path) -> Any:
    if name not in _PATHS or not isinstance(value, str) or not value or value.startswith("~"):
        return value
    return str(folder / value)
