"""The configuration of a restore: what it takes, what it refuses, and what it is without being told."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from portal.ops.errors import ConfigurationError, UnsupportedError
from portal.ops.restore.config import RestoreConfig
from portal.ops.restore.database.model import RestoreMode
from portal.ops.restore.portal_health import HealthCheck
from portal.ops.runtime.commands import AroundCommands
from portal.ops.settings.database_url import Secret
from portal.ops.settings.load import load_settings


def test_what_it_is_without_being_told() -> None:
    """Nothing is left out of the checks, nothing is allowed that has to be asked for."""
    assert {one.name: getattr(RestoreConfig(), one.name) for one in fields(RestoreConfig)} == {
        "local_path": Path("/var/lib/kekkai-portal/backups"),
        "db_host": "localhost",
        "db_port": 5432,
        "db_name": "defectdojo",
        "db_user": "defectdojo",
        "db_password": None,
        "db_options": {},
        "media_path": Path("/var/lib/kekkai-portal/uploads"),
        "audit_log_path": None,
        "dry_run": False,
        "verify_before_restore": True,
        "stop_services": False,
        "encryption_key": None,
        "mode": RestoreMode.AUTO,
        "exact": False,
        "patterns": (),
        "target_database": None,
        "create_database": False,
        "owner": None,
        "allow_unverified": False,
        "allow_outside_links": False,
        "pg_bin_dir": None,
        "lock_timeout": 60,
        "jobs": None,
        "rollback_days": 7,
        "time_zone": UTC,
        "credential_key": None,
        "commands": AroundCommands(),
        "health": HealthCheck(),
        "wal": False,
    }
    assert HealthCheck() == HealthCheck(url=None, timeout_seconds=60.0)


def test_places_may_be_text() -> None:
    """An empty one is none; the archives need one."""
    config = RestoreConfig(local_path="/a", media_path="", audit_log_path="/c", pg_bin_dir="/d")
    assert (config.local_path, config.media_path, config.audit_log_path, config.pg_bin_dir) == (
        Path("/a"),
        None,
        Path("/c"),
        Path("/d"),
    )
    with pytest.raises(ConfigurationError, match="local_path is empty"):
        RestoreConfig(local_path="")


def test_a_password_may_be_text() -> None:
    """It is kept from being shown, unless it is none."""
    config = RestoreConfig(db_password="secret", encryption_key=None)
    assert isinstance(config.db_password, Secret)
    assert config.db_password.reveal() == "secret"
    assert "secret" not in repr(config)
    assert RestoreConfig(db_password="").db_password is None
    assert RestoreConfig(db_password=Secret("x")).db_password == Secret("x")


def test_the_least_numbers() -> None:
    """One process, and no day; less makes no sense."""
    assert (RestoreConfig(jobs=1).jobs, RestoreConfig(rollback_days=0).rollback_days) == (1, 0)
    with pytest.raises(ConfigurationError, match="0 processes"):
        RestoreConfig(jobs=0)
    with pytest.raises(ConfigurationError, match="rollback_days is negative"):
        RestoreConfig(rollback_days=-1)


@pytest.mark.parametrize("mode", RestoreMode)
def test_a_mode_may_be_text(mode: RestoreMode) -> None:
    """One of those that there are."""
    assert RestoreConfig(mode=mode.value).mode is mode
    with pytest.raises(ConfigurationError, match="'sideways' is no way") as caught:
        RestoreConfig(mode="sideways")
    assert caught.value.hint == "Use one of auto, swap, in-place."


@pytest.mark.parametrize("asked", [{"stop_services": True}, {"encryption_key": "secret"}])
def test_what_a_restore_does_not_do_is_refused(asked: dict[str, Any]) -> None:
    """And not passed over; a key is not repeated."""
    with pytest.raises(UnsupportedError) as caught:
        RestoreConfig(**asked)
    assert "secret" not in str(caught.value)
    RestoreConfig(encryption_key="")


def test_the_settings_are_taken(tmp_path: Path) -> None:
    """All of them, and what is given besides goes before them."""
    environ = {
        "DD_DATABASE_HOST": "db",
        "DD_DATABASE_PORT": "5433",
        "DD_DATABASE_NAME": "name",
        "DD_DATABASE_USER": "user",
        "DD_DATABASE_PASSWORD": "secret",
        "BACKUP_LOCAL_PATH": str(tmp_path / "archives"),
        "PORTAL_UPLOAD_DIR": str(tmp_path / "uploads"),
        "PORTAL_AUDIT_DIR": str(tmp_path / "audit"),
        "BACKUP_PG_BIN_DIR": str(tmp_path),
        "BACKUP_LOCK_TIMEOUT": "11",
        "BACKUP_JOBS": "3",
        "BACKUP_ROLLBACK_DAYS": "5",
        "BACKUP_TIMEZONE": "Europe/Berlin",
        "DD_CREDENTIAL_AES_256_KEY": "the key",
        "BACKUP_BEFORE_COMMAND": "stop it",
        "PORTAL_HEALTH_URL": "http://portal/health",
        "PORTAL_HEALTH_TIMEOUT": "30s",
    }
    config = RestoreConfig.from_settings(load_settings(environ, lambda _: ""), exact=True, db_name="other")
    assert (config.db_host, config.db_port, config.db_name, config.db_user) == ("db", 5433, "other", "user")
    assert config.db_password == Secret("secret")
    assert config.local_path == tmp_path / "archives"
    assert (config.media_path, config.audit_log_path) == (tmp_path / "uploads", tmp_path / "audit")
    assert (config.pg_bin_dir, config.lock_timeout, config.jobs, config.rollback_days) == (tmp_path, 11, 3, 5)
    assert str(config.time_zone) == "Europe/Berlin"
    assert config.credential_key == Secret("the key")
    assert config.commands.before == ("stop", "it")
    assert config.health == HealthCheck(url="http://portal/health", timeout_seconds=30.0)
    assert (config.exact, config.wal) == (True, False)
