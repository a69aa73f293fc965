"""Settings: flags > environment SMP_* > project file smp.toml > user file > defaults.

A project file is read from the working directory only, and only if it belongs to this user (or root) and nobody else may write
it: a setting names folders of keys, and a file that came with somebody's data must not choose those.
"""

from __future__ import annotations

import os
import stat
import tomllib
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import platformdirs
from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from secure_media_processor.core.files import os_errors
from secure_media_processor.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_APP = "secure-media-processor"
_PROJECT_FILE = "smp.toml"
_ENV_PREFIX = "SMP_"
_MAX_CONFIG = 64 * 1024
_PATHS = {"keystore", "key_file", "audit_log"}


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


class Settings(BaseSettings):
    """Every setting of the program. Made by get_settings, not by hand."""

    model_config = SettingsConfigDict(env_prefix=_ENV_PREFIX, extra="forbid", frozen=True, validate_default=True)

    keystore: AbsolutePath = Field(
        default_factory=lambda: platformdirs.user_data_path(_APP) / "keys",
        description="Folder of the keys.",
    )
    key_file: AbsolutePath | None = Field(
        default=None,
        description="Key file to use instead of the keystore.",
    )
    audit_log: AbsolutePath = Field(
        default_factory=lambda: platformdirs.user_state_path(_APP) / "audit.jsonl",
        description="File of the audit log; its key lies beside it.",
    )
    audit_on_failure: Literal["stop", "warn"] = Field(
        default="stop",
        description="What to do when the audit log cannot be written: stop before doing anything, or warn and go on.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is the library's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from what `load` hands over, already in order; nothing is read behind its back."""
        return (init_settings,)


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
    return platformdirs.user_config_path(_APP) / "config.toml"


def load(flags: Mapping[str, Any] | None = None) -> Loaded:
    """Read all sources.

    Raises:
        ConfigError: an unknown setting, a value that does not fit, or a project file that cannot be trusted.
    """
    environment = EnvSettingsSource(Settings)()
    layers: list[tuple[str, Mapping[str, Any]]] = [("flag", flags or {}), ("environment", environment)]
    files = (Path.cwd() / _PROJECT_FILE, user_file())
    layers += [(str(path), _read(path)) for path in files if path.is_file()]
    values: dict[str, Any] = {}
    origins = dict.fromkeys(Settings.model_fields, "default")
    for origin, layer in reversed(layers):
        values |= layer
        origins |= {name: _origin(origin, name) for name in layer}
    try:
        settings = Settings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{name} ({origins.get(name, 'unknown')}): {first['msg']}") from None
    return Loaded(settings, origins, tuple(origin for origin, layer in layers if layer))


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
    return f"environment {_ENV_PREFIX}{name.upper()}" if layer == "environment" else layer


def _read(path: Path) -> dict[str, Any]:
    """Return the settings in the TOML file `path`; relative paths in it count from its folder."""
    with os_errors(f"read {path}"), path.open("rb") as file:
        status = os.fstat(file.fileno())
        data = file.read(_MAX_CONFIG + 1)
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        hint = f"check what is in it, then make it yours alone: chown it and chmod go-w {path}"
        raise ConfigError(f"{path} belongs to, or can be changed by, another user", hint=hint)
    if len(data) > _MAX_CONFIG:
        raise ConfigError(f"{path} is too large for a settings file")
    try:
        values = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    unknown = sorted(set(values) - set(Settings.model_fields))
    if unknown:
        raise ConfigError(f"{path} has a setting that does not exist: {unknown[0]}")
    return {name: _from_folder(name, value, path.parent) for name, value in values.items()}


def _from_folder(name: str, value: Any, folder: Path) -> Any:
    return folder / Path(value).expanduser() if name in _PATHS and isinstance(value, str) else value
