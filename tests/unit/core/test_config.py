"""Settings: the order of their sources, where each value came from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from secure_media_processor.core.config import (
    Settings,
    get_loaded,
    get_settings,
    load,
    override_settings,
    set_flags,
    trust,
    user_file,
)
from secure_media_processor.errors import ConfigError, MissingError


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_defaults_lie_in_the_users_folders(work: Path, home: Path) -> None:
    loaded = load()
    assert loaded.settings.keystore == home / ".local/share/secure-media-processor/keys"
    assert loaded.settings.audit_log == home / ".local/state/secure-media-processor/audit.jsonl"
    assert loaded.settings.audit_on_failure == "stop"
    assert set(loaded.origins.values()) == {"default"}
    assert set(loaded.origins) == set(Settings.model_fields)


def test_stronger_sources_win_one_by_one(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(user_file(), 'keystore = "from-user"\naudit_log = "/user/log"\nkey_file = "user.key"\naudit_on_failure = "warn"\n')
    trust(write(work / "smp.toml", 'keystore = "from-project"\naudit_log = "~/log"\nkey_file = "project.key"\n'))
    monkeypatch.setenv("SMP_KEYSTORE", "from-env")
    monkeypatch.setenv("SMP_AUDIT_LOG", "/env/log")
    loaded = load({"keystore": "from-flag"})
    assert loaded.settings.keystore == work / "from-flag"
    assert loaded.settings.audit_log == Path("/env/log")
    assert loaded.settings.key_file == work / "project.key"
    assert loaded.settings.audit_on_failure == "warn"
    assert loaded.origins == {
        "keystore": "flag",
        "stores": "default",
        "cloud_state": "default",
        "models": "default",
        "audit_log": "environment SMP_AUDIT_LOG",
        "key_file": str(work / "smp.toml"),
        "audit_on_failure": str(user_file()),
    }


def test_paths_in_a_file_count_from_its_folder(work: Path, home: Path) -> None:
    write(user_file(), 'keystore = "here"\naudit_log = "~/there"\n')
    settings = load().settings
    assert settings.keystore == user_file().parent / "here"
    assert settings.audit_log == home / "there"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("keystroe = 'x'", "keystroe"),
        ("keystore = 5", "keystore"),
        ("audit_on_failure = 'maybe'", "audit_on_failure"),
        ("keystore = ", "TOML"),
        ("\udcff", "TOML"),
        ("x = '" + "y" * 70_000 + "'", "large"),
    ],
)
def test_bad_files_are_named(work: Path, text: str, part: str) -> None:
    write(user_file(), "").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=part) as caught:
        load()
    assert "config.toml" in str(caught.value)
    assert caught.value.hint


def test_a_file_that_came_with_the_data_is_not_read(work: Path) -> None:
    """Unpacked by this user it belongs to this user: only the user's own word makes it a settings file."""
    path = write(work / "smp.toml", 'key_file = "theirs.key"\n')
    with pytest.raises(ConfigError, match="trust it") as caught:
        load()
    assert "smp config trust" in caught.value.hint
    trust(path)
    assert load().settings.key_file == work / "theirs.key"
    path.write_text('key_file = "other.key"\n')
    with pytest.raises(ConfigError, match="was changed"):
        load()
    path.unlink()
    assert load().settings.key_file is None


def test_what_is_no_settings_file_is_not_trusted(work: Path) -> None:
    with pytest.raises(MissingError):
        trust(work / "smp.toml")
    with pytest.raises(ConfigError):
        trust(write(work / "smp.toml", "nonsense = 1"))


@pytest.mark.parametrize("text", ["[", "[]", "null", "{}"])
def test_a_damaged_list_of_trusted_files_trusts_nobody(work: Path, text: str) -> None:
    path = write(work / "smp.toml", "")
    trust(path)
    write(user_file().with_name("trusted.json"), text)
    with pytest.raises(ConfigError, match="trust"):
        load()


def test_empty_values_do_not_mean_the_working_directory(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMP_KEYSTORE", "")
    assert load().origins["keystore"] == "default"
    for value in ("", "a\0b", "~nobody-has-this-name/x"):
        with pytest.raises(ConfigError, match="keystore"):
            load({"keystore": value})


def test_places_that_are_not_there(
    work: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path_factory.mktemp("gone")
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(MissingError):
        load()


@pytest.mark.parametrize("mode", [0o602, 0o620, 0o666])
def test_a_project_file_that_others_can_change_is_refused(work: Path, mode: int) -> None:
    write(work / "smp.toml", "", mode)
    with pytest.raises(ConfigError, match="another user"):
        load()


def test_bad_flags_and_environment_are_named(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no setting nonsense") as unknown:
        load({"nonsense": "1"})
    assert "keystore" in unknown.value.hint
    monkeypatch.setenv("SMP_AUDIT_ON_FAILURE", "perhaps")
    with pytest.raises(ConfigError, match="environment SMP_AUDIT_ON_FAILURE") as caught:
        load()
    assert "perhaps" not in str(caught.value)


def test_settings_are_read_once_and_can_be_overridden(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_settings() is get_settings()
    before = get_settings()
    with override_settings(keystore=work / "k") as settings:
        assert get_settings() is settings
        assert settings.keystore == work / "k"
        assert get_loaded().origins["keystore"] == "flag"
    assert get_settings() == before
    set_flags({"keystore": "flagged"})
    with override_settings(audit_log=work / "a") as settings:
        assert settings.keystore == work / "flagged"
