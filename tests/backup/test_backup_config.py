"""What can be configured, what is refused, and that no secret ever shows."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from portal.ops.backup import BackupDestination
from portal.ops.backup.job import BackupConfig, BackupJob, create_backup_job
from portal.ops.errors import ConfigurationError, UnsupportedError
from portal.ops.settings.load import Secret

PASSWORD = "hunter2, if you must know"


class Destination(Enum):
    """As the portal's own code has it."""

    LOCAL = "local"
    S3 = "s3"


def configured(**arguments: Any) -> BackupConfig:
    return BackupConfig(**arguments)


RECIPIENT = "age1" + "q" * 58


def refusal(**arguments: Any) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        BackupConfig(**arguments)
    return caught.value


def create(environ: dict[str, str], **arguments: Any) -> BackupJob:
    return create_backup_job(environ=environ, **arguments)


class TestKeywords:
    """The arguments of the guide."""

    def test_every_keyword_of_the_portal_is_taken(self) -> None:
        """The call that the portal's code makes today works."""
        config = BackupConfig(
            destination="local",
            local_path="/backups",
            s3_bucket=None,
            s3_prefix="",
            s3_endpoint=None,
            db_host="db",
            db_port=5433,
            db_name="portal",
            db_user="kekkai",
            media_path="/uploads",
            audit_log_path="/audit.jsonl",
            encryption_enabled=False,
            retention_days=7,
            retention_count=3,
            compress=True,
        )
        database = config.database
        assert (database.host, database.port, database.name, database.user) == ("db", 5433, "portal", "kekkai")
        assert (config.retention_days, config.retention_count) == (7, 3)

    def test_every_keyword_has_a_default(self) -> None:
        """Without arguments, the configuration is that of the guide's table."""
        config = BackupConfig()
        assert config.local_path == Path("/var/lib/kekkai-portal/backups")
        assert (config.db_host, config.db_port, config.db_name, config.db_user) == (
            "localhost",
            5432,
            "defectdojo",
            "defectdojo",
        )
        assert (config.retention_days, config.retention_count) == (30, 10)
        assert config.media_path == Path("/var/lib/kekkai-portal/uploads")
        assert config.audit_log_path is config.db_password is None

    def test_the_guides_retention_example_works(self) -> None:
        """The guide configures retention alone."""
        config = BackupConfig(retention_days=30, retention_count=10)
        assert config.retention_count == 10

    @pytest.mark.parametrize("name", ["local_path", "media_path", "audit_log_path", "pg_bin_dir"])
    def test_a_string_is_good_enough_for_a_path(self, name: str) -> None:
        """Paths can be strings or paths, and are equal afterwards."""
        assert configured(**{name: "/some/where"}) == configured(**{name: Path("/some/where")})

    def test_a_prefix_alone_asks_for_nothing(self) -> None:
        """The portal's configuration has a prefix for S3 even where the destination is local."""
        assert BackupConfig(destination=BackupDestination.LOCAL, s3_prefix="backups/").s3_prefix == "backups/"

    @pytest.mark.parametrize("media_path", [None, ""])
    def test_no_media_path_excludes_the_media(self, media_path: str | None) -> None:
        """The default are the uploads of the guide; who wants none says so."""
        assert configured(media_path=media_path).media_path is None

    @pytest.mark.parametrize("name", ["media_path", "audit_log_path", "pg_bin_dir", "db_password"])
    def test_an_empty_string_is_none(self, name: str) -> None:
        """What is empty is left out."""
        assert getattr(configured(**{name: ""}), name) is None

    def test_a_destination_can_be_an_enum(self) -> None:
        """The portal's own enum is taken by its value."""
        BackupConfig(destination=Destination.LOCAL)
        assert "names no bucket" in refusal(destination=Destination.S3).message
        assert BackupConfig(
            destination=Destination.S3, s3_bucket="b", encryption_recipients=(RECIPIENT,)
        ).offsite_config()

    @pytest.mark.parametrize(
        ("arguments", "what"),
        [
            ({"s3_bucket": "backups"}, "has the destination local"),
            ({"s3_endpoint": "https://s3.example.org"}, "has the destination local"),
            ({"destination": "s3"}, "names no bucket"),
            ({"destination": "s3", "s3_bucket": "b"}, "no recipient is named"),
        ],
    )
    def test_contradictions_about_copies_are_refused(self, arguments: dict[str, Any], what: str) -> None:
        """A copy without a place or a recipient, and a place without a copy, are refused."""
        assert what in refusal(**arguments).message

    def test_positions_mean_nothing(self) -> None:
        """Arguments are given by name only."""
        with pytest.raises(TypeError):
            BackupConfig("local")  # type: ignore[call-arg]

    def test_the_configuration_cannot_be_changed(self) -> None:
        """A job's configuration is what it was made with."""
        with pytest.raises(AttributeError):
            BackupConfig().db_name = "other"  # type: ignore[misc]


class TestRefused:
    """Invalid data, or is not in this release."""

    @pytest.mark.parametrize(
        ("arguments", "what"),
        [
            ({"encryption_enabled": True}, "encryption"),
            ({"encryption_key": b"0123456789abcdef"}, "encryption"),
            ({"compress": False}, "an archive that is not compressed"),
            ({"destination": ""}, "the destination ''"),
        ],
    )
    def test_what_is_not_built_is_refused(self, arguments: dict[str, Any], what: str) -> None:
        """What this release cannot do is an error with a way out, and never ignored."""
        error = refusal(**arguments)
        assert isinstance(error, UnsupportedError)
        assert error.message == f"this release does not have {what}"
        assert error.hint
        assert error.exit_code == 2

    def test_all_that_is_not_built_is_named_at_once(self) -> None:
        """Two wishes that cannot be met are in one error."""
        assert refusal(encryption_enabled=True, compress=False).message.count(" and ") == 1

    @pytest.mark.parametrize(
        ("arguments", "what"),
        [
            ({"local_path": ""}, "local_path is empty"),
            ({"db_port": 0}, "db_port is 0"),
            ({"db_port": 65536}, "db_port is 65536"),
            ({"retention_days": -1}, "retention_days"),
            ({"retention_count": -1}, "retention_count"),
            ({"jobs": 0}, "jobs is less than 1"),
            ({"dump_timeout": 0}, "dump_timeout"),
            ({"lock_timeout": -1}, "lock_timeout"),
        ],
    )
    def test_nonsense_is_refused(self, arguments: dict[str, Any], what: str) -> None:
        """A value that cannot be used is named."""
        assert what in refusal(**arguments).message

    def test_all_nonsense_is_named_at_once(self) -> None:
        """Nobody has to correct one fault to learn of the next."""
        message = refusal(local_path="", db_port=0, jobs=0).message
        assert all(name in message for name in ("local_path", "db_port", "jobs"))

    @pytest.mark.parametrize("name", ["password", "sslpassword"])
    def test_a_secret_among_the_options_is_refused(self, name: str) -> None:
        """Options become arguments of pg_dump, which everybody can read, so a secret is refused and not shown."""
        error = refusal(db_options={name: PASSWORD})
        assert name in error.message
        assert PASSWORD not in str(error)


class TestCreate:
    """A job from the environment and arguments."""

    def test_the_environment_counts(self) -> None:
        """Every variable of the guide's table arrives."""
        config = create(
            {
                "DD_DATABASE_HOST": "db",
                "DD_DATABASE_PORT": "5433",
                "DD_DATABASE_NAME": "portal",
                "DD_DATABASE_USER": "kekkai",
                "DD_DATABASE_PASSWORD": PASSWORD,
                "BACKUP_LOCAL_PATH": "/backups",
                "PORTAL_UPLOAD_DIR": "/uploads",
                "PORTAL_AUDIT_DIR": "/audit",
                "BACKUP_RETENTION_DAYS": "7",
                "BACKUP_RETENTION_COUNT": "3",
            }
        ).config
        assert config == BackupConfig(
            db_host="db",
            db_port=5433,
            db_name="portal",
            db_user="kekkai",
            db_password=PASSWORD,
            local_path="/backups",
            media_path="/uploads",
            audit_log_path="/audit",
            retention_days=7,
            retention_count=3,
        )

    def test_the_process_environment_is_the_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where no variables are passed in, the process's own count."""
        monkeypatch.setenv("DD_DATABASE_NAME", "from_the_process")
        assert create_backup_job().config.db_name == "from_the_process"

    def test_arguments_win(self) -> None:
        """What is given as an argument counts more than the environment, and the rest stays."""
        environ = {
            "BACKUP_LOCAL_PATH": "/a",
            "DD_DATABASE_HOST": "a",
            "DD_DATABASE_NAME": "a",
            "PORTAL_UPLOAD_DIR": "/a",
        }
        config = create(environ, local_path="/b", db_host="b", media_path="/b").config
        assert (config.local_path, config.media_path) == (Path("/b"), Path("/b"))
        assert (config.db_host, config.db_name) == ("b", "a")

    def test_arguments_can_be_given_by_position(self) -> None:
        """The four arguments of the guide have an order."""
        config = create_backup_job("/b", "db", "portal", "/uploads", environ={}).config
        assert config == BackupConfig(local_path="/b", db_host="db", db_name="portal", media_path="/uploads")

    def test_any_other_keyword_is_handed_on(self) -> None:
        """Every argument of the configuration can be given."""
        assert create({}, db_port=5433, audit_log_path="/audit").config.db_port == 5433

    def test_an_unknown_keyword_is_refused(self) -> None:
        """A misspelt argument is not ignored."""
        with pytest.raises(TypeError, match="databse"):
            create({}, databse="portal")

    def test_an_empty_media_path_leaves_the_media_out(self) -> None:
        """An argument that is empty counts, where the environment has a default."""
        assert create({}, media_path="").config.media_path is None

    def test_the_url_wins_over_the_single_variables(self) -> None:
        """DD_DATABASE_URL is taken apart, with its options."""
        url = "postgres://kekkai:p%40ss@db:5433/portal?sslmode=require"
        config = create({"DD_DATABASE_URL": url, "DD_DATABASE_HOST": "other"}).config
        assert (config.db_host, config.db_port, config.db_name) == ("db", 5433, "portal")
        assert config.db_password == Secret("p@ss")
        assert config.database.options == {"sslmode": "require"}

    def test_the_password_can_be_a_file(self, tmp_path: Path) -> None:
        """DD_DATABASE_PASSWORD_FILE is read, less its line end."""
        (tmp_path / "password").write_text(f"{PASSWORD}\n")
        config = create({"DD_DATABASE_PASSWORD_FILE": str(tmp_path / "password")}).config
        assert config.db_password == Secret(PASSWORD)

    def test_the_url_can_be_a_file(self, tmp_path: Path) -> None:
        """DD_DATABASE_URL_FILE is read as well: a URL holds the password."""
        (tmp_path / "url").write_text("postgres://kekkai:secret@db/portal")
        config = create({"DD_DATABASE_URL_FILE": str(tmp_path / "url")}).config
        assert (config.db_host, config.db_password) == ("db", Secret("secret"))

    def test_all_faults_of_the_environment_are_reported(self) -> None:
        """Every variable that cannot be used is named in one error."""
        with pytest.raises(ConfigurationError) as caught:
            create({"DD_DATABASE_PORT": "x", "BACKUP_JOBS": "0", "BACKUP_LOCAL_PATH": "relative"})
        assert all(name in caught.value.message for name in ("DD_DATABASE_PORT", "BACKUP_JOBS", "BACKUP_LOCAL_PATH"))


class TestSecrets:
    """Where a password must not turn up."""

    @pytest.mark.parametrize("show", [repr, str, "{!r}".format, "{}".format])
    def test_not_in_print(self, show: Any) -> None:
        """Printing a configuration, or what it is made of, shows no password."""
        config = BackupConfig(db_password=PASSWORD)
        assert PASSWORD not in show(config)
        assert PASSWORD not in show(config.database)
        assert PASSWORD not in show(config.db_password)

    def test_not_in_a_pickle(self) -> None:
        """A configuration with a password is not pickled: a queue or a cache would keep it."""
        with pytest.raises(TypeError, match="neither pickled nor copied"):
            pickle.dumps(BackupConfig(db_password=PASSWORD))

    def test_not_in_a_dictionary(self) -> None:
        """A configuration with a password does not become a plain dictionary."""
        with pytest.raises(TypeError, match="neither pickled nor copied"):
            asdict(BackupConfig(db_password=PASSWORD))

    def test_not_in_json(self) -> None:
        """The password itself is nothing that JSON could write."""
        with pytest.raises(TypeError):
            json.dumps(BackupConfig(db_password=PASSWORD).db_password)

    def test_not_in_the_errors_of_the_environment(self, tmp_path: Path) -> None:
        """A URL that cannot be used is not quoted, nor is what a password file's variable says."""
        environ = {"DD_DATABASE_URL": f"mysql://kekkai:{PASSWORD}@db/portal", "DD_DATABASE_PASSWORD_FILE": PASSWORD}
        with pytest.raises(ConfigurationError) as caught:
            create(environ)
        assert "hunter2" not in str(caught.value)
        assert "hunter2" not in repr(caught.value)

    def test_not_in_the_errors_of_arguments(self) -> None:
        """An error about another argument does not show the password."""
        assert "hunter2" not in repr(refusal(db_password=PASSWORD, db_port=0))
