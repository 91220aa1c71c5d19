"""Settings: defaults, the file, keywords, and errors that help."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import occamdb
from occamdb.engine.model.errors import SettingsError, SettingsMismatchError
from occamdb.engine.model.limits import GIB, KIB, MIB, Limits
from occamdb.engine.model.settings import SETTINGS_FILE, Settings, load_settings, setting_names


def test_defaults() -> None:
    settings = Settings()
    assert settings.max_store_size == 4 * GIB
    assert settings.ring_size == 256 * KIB
    assert settings.wal_segment_size == 64 * MIB
    assert settings.checkpoint_bytes == 256 * MIB
    assert settings.sync_interval == 0.1
    assert settings.snapshot_max_age == 300.0
    assert settings.idle_timeout == 10.0
    assert settings.limits == Limits()


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    assert load_settings(tmp_path) == load_settings(None) == load_settings(tmp_path / "absent") == Settings()


def test_the_file_is_read_and_keywords_win(tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_text(
        'max_store_size = "1GiB"\nidle_timeout = 3\nkey_size_max = 1024\n[limits]\nvalue_size_max = "1 MiB"\n'
    )
    settings = load_settings(tmp_path, idle_timeout=1.5, sync_interval=None)
    assert settings == Settings(
        max_store_size=GIB, idle_timeout=1.5, limits=Limits(key_size_max=1024, value_size_max=MIB)
    )
    assert isinstance(load_settings(tmp_path).idle_timeout, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ring_size = ", "not valid TOML"),
        ("ring_sise = 4096", "unknown setting 'ring_sise'"),
        ("ring_size = 5000", "not a power of two"),
        ("limits = 3", "limits must be a table"),
        ("[idle]\ntimeout = 3", "unknown setting 'idle'"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / SETTINGS_FILE
    path.write_text(text)
    with pytest.raises(SettingsError, match=message) as caught:
        load_settings(tmp_path)
    assert str(path) in caught.value.message and caught.value.details["file"] == str(path)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="not valid TOML"):
        load_settings(tmp_path)


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("max_stor_size", "max_store_size"), ("keysize_max", "key_size_max"), ("timeout_idle", "idle_timeout")],
)
def test_unknown_names_suggest_the_nearest(typo: str, meant: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(None, None, **{typo: 1})
    assert caught.value.hint == f"did you mean {meant}?"


def test_unknown_names_far_from_any_list_all() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(None, zzz=1)
    assert all(name in caught.value.hint for name in setting_names())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_store_size", 0),
        ("max_store_size", 65 * GIB),
        ("max_store_size", "lots"),
        ("ring_size", 3 * 64 * KIB),
        ("ring_size", 1),
        ("wal_segment_size", -1),
        ("checkpoint_bytes", None),
        ("sync_interval", 0),
        ("sync_interval", "0.1"),
        ("snapshot_max_age", float("inf")),
        ("idle_timeout", float("nan")),
        ("channel_count_max", 1.0),
        ("channel_count_max", True),
        ("limits", 3),
        ("limits", None),
    ],
)
def test_wrong_values_name_the_setting(name: str, value: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings(**{name: value})
    assert caught.value.setting == name and name in caught.value.message and caught.value.code


@pytest.mark.parametrize("name", setting_names())
def test_every_setting_is_validated_by_keyword(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(None, None, **{name: "nonsense"})
    assert caught.value.setting == name and caught.value.hint


def test_power_of_two_suggests_neighbours() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings(ring_size=5000)
    assert "4 KiB" in caught.value.hint and "8 KiB" in caught.value.hint


@given(st.integers(12, 26), st.floats(0.001, 60), st.integers(64, 60 * KIB))
def test_as_dict_reads_back(bits: int, sync_interval: float, key_size_max: int) -> None:
    settings = Settings(
        ring_size=1 << bits, sync_interval=sync_interval, limits=Limits(key_size_max=key_size_max)
    )
    assert Settings.of(settings.as_dict()) == settings == pickle.loads(pickle.dumps(settings))
    assert set(settings.as_dict()) == set(setting_names())


def test_changed_replaces_some() -> None:
    settings = Settings(ring_size=4096).changed(key_size_max="2KiB", idle_timeout=2)
    assert (settings.ring_size, settings.limits.key_size_max, settings.idle_timeout) == (4096, 2048, 2.0)


def test_limits_as_an_object() -> None:
    limits = Limits(key_size_max=128)
    assert load_settings(None, limits=limits).limits == limits
    assert load_settings(None, limits=limits, value_size_max=1024).limits == Limits(128, 1024)


def test_matching_settings_pass_in_any_spelling() -> None:
    Settings().require_match({})
    Settings().require_match({"ring_size": "256 KiB", "idle_timeout": 10, "key_size_max": 8192})


def test_mismatch_names_all_that_differ() -> None:
    with pytest.raises(SettingsMismatchError) as caught:
        Settings().require_match({"ring_size": 4096, "sync_interval": 0.1, "key_size_max": 100})
    error = caught.value
    assert set(error.details) - {"setting"} == {"ring_size", "key_size_max"}
    assert error.details["ring_size"] == {"running": 256 * KIB, "asked": 4096}
    assert "occamdb stop" in error.hint


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("durabilty", "durability"), ("strict_run", "strict_runs"), ("max_store", "max_store_size")],
)
def test_a_mistyped_keyword_of_open_is_told_the_one_that_was_meant(
    typo: str, meant: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {typo: "x"}
    with pytest.raises(SettingsError) as caught:
        occamdb.open(tmp_path / "db", **given)
    assert caught.value.hint == f"did you mean {meant}?"
    with pytest.raises(SettingsError) as caught:
        occamdb.open_in_memory(**given)
    assert caught.value.hint == f"did you mean {meant}?"
    assert not (tmp_path / "db").exists()
