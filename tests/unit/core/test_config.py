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
    user_file,
)
from secure_media_processor.errors import ConfigError


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
    write(work / "smp.toml", 'keystore = "from-project"\naudit_log = "~/log"\nkey_file = "project.key"\n')
    monkeypatch.setenv("SMP_KEYSTORE", "from-env")
    monkeypatch.setenv("SMP_AUDIT_LOG", "/env/log")
    loaded = load({"keystore": "from-flag"})
    assert loaded.settings.keystore == work / "from-flag"
    assert loaded.settings.audit_log == Path("/env/log")
    assert loaded.settings.key_file == work / "project.key"
    assert loaded.settings.audit_on_failure == "warn"
    assert loaded.origins == {
        "keystore": "flag",
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
    (work / "smp.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=part) as caught:
        load()
    assert "smp.toml" in str(caught.value)


@pytest.mark.parametrize("mode", [0o602, 0o620, 0o666])
def test_a_project_file_that_others_can_change_is_refused(work: Path, mode: int) -> None:
    write(work / "smp.toml", "", mode)
    with pytest.raises(ConfigError, match="another user"):
        load()


def test_bad_flags_and_environment_are_named(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        load({"nonsense": "1"})
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
