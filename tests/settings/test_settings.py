"""The settings: defaults, precedence, secrets, faults, and the table in the documentation."""

from __future__ import annotations

import copy
import json
import pickle
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portal.ops.errors import ConfigurationError, UnsupportedError
from portal.ops.settings.load import (
    SETTINGS,
    DatabaseTarget,
    LogFormat,
    Secret,
    Setting,
    Settings,
    load_settings,
    refuse_unbuilt,
    unknown_settings,
)

TABLE = Path(__file__).parents[2] / "docs" / "settings.md"
NUMBERS = [
    "DD_DATABASE_PORT",
    "BACKUP_RETENTION_DAYS",
    "BACKUP_RETENTION_COUNT",
    "BACKUP_ROLLBACK_DAYS",
    "BACKUP_DUMP_TIMEOUT",
    "BACKUP_LOCK_TIMEOUT",
    "BACKUP_JOBS",
]
PATHS = ["BACKUP_LOCAL_PATH", "PORTAL_UPLOAD_DIR", "PORTAL_AUDIT_DIR", "BACKUP_PG_BIN_DIR"]


def no_file(path: str) -> str:
    raise FileNotFoundError(2, "No such file or directory", path)


def load(environ: dict[str, str] | None = None, files: dict[str, str] | None = None) -> Settings:
    return load_settings(environ or {}, files.__getitem__ if files else no_file)


def database(url: str, **environ: str) -> DatabaseTarget:
    return load({"DD_DATABASE_URL": url, **environ}).database


def faults(environ: dict[str, str], files: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(environ, files)
    return str(caught.value).splitlines()[1:-1]


def values_of(group: Any) -> list[Any]:
    """Every value of a group, and of the groups in it."""
    values = [getattr(group, one.name) for one in fields(group)]
    return values + [inner for value in values if is_dataclass(value) for inner in values_of(value)]


class TestDefaults:
    def test_an_empty_environment_gives_what_the_guide_says(self) -> None:
        """With nothing set, every setting has the default of the guide."""
        loaded = load()
        assert loaded.database == DatabaseTarget(host="localhost", port=5432, name="defectdojo", user="defectdojo")
        assert loaded.local_path == Path("/var/lib/kekkai-portal/backups")
        assert loaded.upload_dir == Path("/var/lib/kekkai-portal/uploads")
        assert loaded.audit_dir is None
        assert (loaded.retention.days, loaded.retention.count) == (30, 10)

    def test_an_empty_environment_needs_no_broker(self) -> None:
        """With nothing set, commands do the work themselves, and nobody is told."""
        loaded = load()
        assert (loaded.worker.broker_url, loaded.worker.result_backend) == (None, None)
        assert (loaded.targets.notify_urls, loaded.targets.ping_url) == (None, None)

    def test_an_empty_environment_has_the_guides_schedules(self) -> None:
        """With nothing set, a full backup is made at two, and one of the database every hour."""
        assert (load().schedules.full, load().schedules.database) == ("0 2 * * *", "0 * * * *")

    def test_what_is_set_to_nothing_is_not_set(self) -> None:
        """An empty variable counts as one that is not there."""
        empty = {setting.name: "" for setting in SETTINGS if setting.name != "PORTAL_UPLOAD_DIR"}
        assert load(empty) == load()

    def test_an_empty_upload_directory_leaves_the_media_out(self) -> None:
        """PORTAL_UPLOAD_DIR set to nothing means no media, not the default."""
        assert load({"PORTAL_UPLOAD_DIR": ""}).upload_dir is None

    @pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
    def test_every_default_can_be_parsed(self, setting: Setting[object]) -> None:
        """Every default is a text that its own parser takes."""
        assert setting.parse(setting.default) in values_of(Settings())


class TestValues:
    def test_a_value_replaces_the_default(self) -> None:
        """What is set counts, in the type of its field."""
        loaded = load(
            {
                "BACKUP_LOCAL_PATH": "/backups",
                "PORTAL_AUDIT_DIR": "/audit/audit.jsonl",
                "BACKUP_RETENTION_DAYS": "7",
                "BACKUP_JOBS": "3",
                "BACKUP_LOG_FORMAT": "JSON",
            }
        )
        assert (loaded.local_path, loaded.audit_dir) == (Path("/backups"), Path("/audit/audit.jsonl"))
        assert (loaded.retention.days, loaded.jobs) == (7, 3)
        assert loaded.log_format is LogFormat.JSON

    def test_blanks_around_a_number_are_forgiven(self) -> None:
        """An environment file with Windows line ends leaves a carriage return behind a number."""
        assert load({"BACKUP_RETENTION_DAYS": " 7\r"}).retention.days == 7

    @pytest.mark.parametrize(
        ("text", "seconds"), [("90s", 90), ("15m", 900), (" 2H ", 7200), ("8d", 691_200), ("36500d", 3_153_600_000)]
    )
    def test_a_time_has_a_unit(self, text: str, seconds: int) -> None:
        """A time is a whole number of seconds, minutes, hours or days."""
        assert load({"BACKUP_RPO_DATABASE": text}).targets.rpo_database.total_seconds() == seconds

    @pytest.mark.parametrize("text", ["90", "h", "1.5h", "-1h", "36501d", "999999999d", "1 week"])
    def test_what_is_no_time_is_a_fault(self, text: str) -> None:
        """A number without a unit could be anything."""
        assert faults({"BACKUP_RPO_DATABASE": text}) == [
            f"  BACKUP_RPO_DATABASE: {text!r} is not a time such as 90s, 15m, 2h or 8d"
        ]

    def test_a_schedule_can_be_switched_off(self) -> None:
        """``off`` is never."""
        assert load({"BACKUP_SCHEDULE_DRILL": "Off"}).schedules.drill is None

    @pytest.mark.parametrize("text", ["daily", "0 25 * * *", "0 2 * *", "x", "0 0 2 * * *"])
    def test_what_is_no_schedule_is_a_fault(self, text: str) -> None:
        """A cron expression has five fields that make sense."""
        (fault,) = faults({"BACKUP_SCHEDULE_FULL": text})
        assert fault.startswith(f"  BACKUP_SCHEDULE_FULL: {text!r} is neither a cron expression")

    def test_a_time_zone_has_a_name(self) -> None:
        """Schedules follow the clock of a place."""
        assert load({"BACKUP_TIMEZONE": "Europe/Berlin"}).schedules.time_zone.key == "Europe/Berlin"
        assert faults({"BACKUP_TIMEZONE": "../etc/passwd"}) != []
        assert faults({"BACKUP_TIMEZONE": "Mars/Base"}) != []

    def test_several_directories_have_colons_between_them(self) -> None:
        """As PATH has them, each absolute."""
        assert load({"BACKUP_ALLOWED_PATHS": "/a:/b"}).worker.allowed_paths == (Path("/a"), Path("/b"))
        assert faults({"BACKUP_ALLOWED_PATHS": "/a:b"}) != []

    def test_a_host_that_is_a_directory_is_kept(self) -> None:
        """A host that starts with a slash is the directory of a socket."""
        assert load({"DD_DATABASE_HOST": "/run/postgresql"}).database.host == "/run/postgresql"


class TestFaults:
    def test_all_faults_are_told_at_once(self) -> None:
        """One error names every variable that cannot be used."""
        told = faults({"DD_DATABASE_PORT": "x", "BACKUP_LOCAL_PATH": "here", "BACKUP_LOG_FORMAT": "xml"})
        assert [line.split(":")[0].strip() for line in told] == [
            "DD_DATABASE_PORT",
            "BACKUP_LOCAL_PATH",
            "BACKUP_LOG_FORMAT",
        ]

    def test_a_fault_shows_the_value_and_what_was_expected(self) -> None:
        """A fault names the variable, quotes its value and says what it should be."""
        assert faults({"DD_DATABASE_PORT": "70000"}) == [
            "  DD_DATABASE_PORT: '70000' is not a whole number from 1 to 65535"
        ]

    def test_a_fault_comes_with_a_hint(self) -> None:
        """The error says where to read on."""
        with pytest.raises(ConfigurationError) as caught:
            load({"BACKUP_JOBS": "many"})
        assert "docs/settings.md" in caught.value.hint

    @pytest.mark.parametrize("name", NUMBERS)
    @pytest.mark.parametrize("value", ["-1", "1.5", "1e3", "ten", "1_000", "٣", "9" * 5000])
    def test_what_is_no_whole_number_is_refused(self, name: str, value: str) -> None:
        """A number is decimal digits, and not absurdly large."""
        assert name in faults({name: value})[0]

    @pytest.mark.parametrize("name", ["DD_DATABASE_PORT", "BACKUP_DUMP_TIMEOUT", "BACKUP_JOBS"])
    def test_zero_is_refused_where_it_means_nothing(self, name: str) -> None:
        """No port, no time limit and no number of processes is zero."""
        assert name in faults({name: "0"})[0]

    @pytest.mark.parametrize("name", PATHS)
    @pytest.mark.parametrize("value", ["backups", "./backups", "~/backups", '"/backups"'])
    def test_a_relative_path_is_refused(self, name: str, value: str) -> None:
        """A path that is not absolute would depend on where the program is started."""
        assert "not an absolute path" in faults({name: value})[0]


class TestUrl:
    def test_a_url_wins_over_the_single_variables(self) -> None:
        """Each part of the URL replaces the variable of that part."""
        target = database(
            "postgres://u:p@db:6000/dojo", DD_DATABASE_HOST="other", DD_DATABASE_PORT="1", DD_DATABASE_PASSWORD="q"
        )
        assert target == DatabaseTarget(host="db", port=6000, name="dojo", user="u", password=Secret("p"))

    def test_what_a_url_leaves_out_comes_from_the_single_variables(self) -> None:
        """A URL of a host and a name takes the port, the user and the password from the variables."""
        target = database("postgres://db/dojo", DD_DATABASE_PORT="6000", DD_DATABASE_USER="u", DD_DATABASE_PASSWORD="p")
        assert target == DatabaseTarget(host="db", port=6000, name="dojo", user="u", password=Secret("p"))

    @pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgis", "psql", "pgsql", "POSTGRES"])
    def test_every_scheme_of_postgresql_is_taken(self, scheme: str) -> None:
        """The schemes are those that DefectDojo takes."""
        assert database(f"{scheme}://db/dojo").host == "db"

    @settings(deadline=None)
    @given(user=st.text(min_size=1), password=st.text(min_size=1))
    def test_user_and_password_are_decoded(self, user: str, password: str) -> None:
        """Any user and password come through a URL unchanged once they are percent-encoded."""
        if "\0" in user + password:
            return
        target = database(f"postgres://{quote(user, safe='')}:{quote(password, safe='')}@db/dojo")
        assert (target.user, target.password) == (user, Secret(password))

    @pytest.mark.parametrize(
        "url",
        [
            "postgres://u@%2Frun%2FPostgreSQL/dojo",
            "postgres://u@%2frun%2fPostgreSQL:5432/dojo",
            "postgres:////run/PostgreSQL/dojo",
            "postgres:///dojo?host=/run/PostgreSQL",
        ],
    )
    def test_the_host_can_be_the_directory_of_a_socket(self, url: str) -> None:
        """Each way to write a socket's directory in a URL gives that directory, letter for letter."""
        assert (database(url).host, database(url).name) == ("/run/PostgreSQL", "dojo")

    def test_an_address_of_version_6_loses_its_brackets(self) -> None:
        """libpq wants the address without the brackets that a URL needs."""
        assert database("postgres://[::1]:6000/dojo").host == "::1"

    def test_options_of_libpq_are_kept_and_others_left_out(self) -> None:
        """sslmode is for libpq; conn_max_age is for Django, and libpq would refuse it."""
        target = database("postgres://db/dojo?sslmode=verify-full&sslrootcert=/ca.pem&conn_max_age=600")
        assert target.options == {"sslmode": "verify-full", "sslrootcert": "/ca.pem"}

    def test_a_password_among_the_options_is_a_secret_too(self) -> None:
        """A password in the query of a URL is the password, and no option that would be shown."""
        target = database("postgres://db/dojo?password=hunter2")
        assert target.password == Secret("hunter2")
        assert "hunter2" not in repr(target)

    @pytest.mark.parametrize(
        ("url", "reason"),
        [
            ("mysql://u:hunter2@db/dojo", "scheme"),
            ("hunter2", "scheme"),
            ("postgres://u:hunter2@db", "names no database"),
            ("postgres://u:hunter2@db/", "names no database"),
            ("postgres://u:hunter2@db:0/dojo", "port"),
            ("postgres://u:p@db/dojo?port=hunter2", "port"),
            ("postgres://u:p@db:hunter2/dojo", "cannot be understood"),
            ("postgres://u:[hunter2@db/dojo", "cannot be understood"),
            ("postgres://u:1#hunter2@db/dojo", "percent-encoded"),
            ("postgres://u:1/n?hunter2@db/dojo", "percent-encoded"),
            ("postgres://db/hunter2/dojo", "slash"),
        ],
    )
    def test_a_url_that_cannot_be_used_is_refused_without_showing_it(self, url: str, reason: str) -> None:
        """The fault of a URL says what is wrong with it and shows no piece of it."""
        (told,) = faults({"DD_DATABASE_URL": url})
        assert reason in told
        assert "hunter2" not in told


class TestSecretFiles:
    @pytest.mark.parametrize(
        ("content", "password"), [("p", "p"), ("p\n", "p"), ("p\r\n", "p"), ("p\n\n", "p\n"), (" p ", " p ")]
    )
    def test_a_file_gives_the_secret_less_one_line_end(self, content: str, password: str) -> None:
        """The content of the file is the secret, but for one line end at its end."""
        loaded = load({"DD_DATABASE_PASSWORD_FILE": "/s"}, {"/s": content})
        assert loaded.database.password == Secret(password)

    def test_a_url_can_be_a_file(self) -> None:
        """DD_DATABASE_URL_FILE names a file that holds the URL."""
        assert load({"DD_DATABASE_URL_FILE": "/s"}, {"/s": "postgres://db/dojo\n"}).database.host == "db"

    def test_both_the_secret_and_its_file_are_refused(self) -> None:
        """A secret that is given twice is a fault, since one of them is out of date some day."""
        (told,) = faults({"DD_DATABASE_PASSWORD": "hunter2", "DD_DATABASE_PASSWORD_FILE": "/s"}, {"/s": "hunter2"})
        assert "DD_DATABASE_PASSWORD is set too" in told
        assert "hunter2" not in told

    def test_a_file_that_cannot_be_read_is_a_fault(self) -> None:
        """The fault names the variable and the reason, not the file: it may be the password, put there by mistake."""
        (told,) = faults({"DD_DATABASE_PASSWORD_FILE": "hunter2"})
        assert "DD_DATABASE_PASSWORD_FILE" in told
        assert "no such file" in told
        assert "hunter2" not in told

    def test_a_file_that_is_not_text_is_a_fault(self) -> None:
        """Bytes that are no text make no secret, and are not shown."""

        def read_text(path: str) -> str:
            return b"\xffhunter2".decode()

        with pytest.raises(ConfigurationError, match="not text") as caught:
            load_settings({"DD_DATABASE_PASSWORD_FILE": "/s"}, read_text)
        assert "hunter2" not in str(caught.value)


class TestSecret:
    @pytest.mark.parametrize("show", [str, repr, "{}".format, "{!r}".format, lambda secret: str([secret])])
    def test_a_secret_is_not_shown(self, show: object) -> None:
        """However it is turned into text, a secret gives asterisks."""
        assert callable(show)
        assert show(Secret("hunter2")).strip("[]") == "********"

    @pytest.mark.parametrize("leak", [pickle.dumps, copy.deepcopy, json.dumps])
    def test_a_secret_is_not_serialised(self, leak: object) -> None:
        """Pickle, deep copies and JSON refuse a secret."""
        assert callable(leak)
        with pytest.raises(TypeError):
            leak(Secret("hunter2"))

    def test_a_secret_is_equal_to_one_of_the_same_text_alone(self) -> None:
        """Secrets compare by what they hold, and are never equal to a plain string."""
        assert Secret("a") == Secret("a")
        assert Secret("a") != Secret("b")
        assert Secret("a") != "a"

    def test_no_setting_shows_the_password(self) -> None:
        """The settings can be logged as they are."""
        assert "hunter2" not in repr(load({"DD_DATABASE_URL": "postgres://u:hunter2@db/dojo"}))

    @settings(deadline=None)
    @given(
        secret=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=6),
        frame=st.sampled_from(
            [
                "postgres://u:{}@db",
                "postgres://u:{}@db/dojo",
                "postgres://u:1{}@db/dojo",
                "postgres://u:1/{}@db/dojo",
                "postgres://u:1?{}@db/dojo",
                "mysql://{}",
                "{}",
            ]
        ),
    )
    def test_no_fault_shows_a_secret(self, secret: str, frame: str) -> None:
        """Whatever is wrong with a URL, and wherever it stands, the error holds nothing of the secret."""
        secret = f"§{secret}§"
        environ = {"DD_DATABASE_PASSWORD_FILE": secret, "DD_DATABASE_URL": frame.format(secret), "BACKUP_JOBS": "x"}
        with pytest.raises(ConfigurationError) as caught:
            load(environ)
        assert "§" not in str(caught.value)
        assert caught.value.__context__ is None


class TestUnknownSettings:
    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("BACKUP_RETENTION_DAY", "BACKUP_RETENTION_DAYS"),
            ("BACKUP_RETENTON_COUNT", "BACKUP_RETENTION_COUNT"),
            ("PORTAL_UPLOADS_DIR", "PORTAL_UPLOAD_DIR"),
            ("DD_DATABASE_PASSWROD", "DD_DATABASE_PASSWORD"),
            ("DD_DATABASE_PASSWORDFILE", "DD_DATABASE_PASSWORD_FILE"),
        ],
    )
    def test_a_mistyped_name_is_noticed(self, name: str, meant: str) -> None:
        """A name that is nearly a setting's gets a suggestion."""
        assert unknown_settings({name: "1"}) == [f"{name} is not a setting; did you mean {meant}?"]

    def test_a_name_of_somebody_else_is_left_alone(self) -> None:
        """Variables of other programs and of later releases are nobody's mistake."""
        others = ["BACKUP_REMOTE_PATH", "BACKUP_ENCRYPTION_KEY", "DD_DATABASE_TYPE", "PORTAL_SECRET_KEY", "PATH"]
        assert unknown_settings(dict.fromkeys(others, "1")) == []

    def test_a_known_name_is_no_suggestion(self) -> None:
        """Settings, and the files of secrets, are known."""
        known = [setting.name for setting in SETTINGS] + ["DD_DATABASE_PASSWORD_FILE", "DD_DATABASE_URL_FILE"]
        assert unknown_settings(dict.fromkeys(known, "1")) == []

    def test_a_mistyped_name_is_no_fault(self) -> None:
        """What looks like a mistake is for a warning; the settings load all the same."""
        assert load({"BACKUP_RETENTION_DAY": "1"}) == load()


RECIPIENT = "age1" + "q" * 58


class TestUnbuilt:
    """What the environment asks for and this release does not have."""

    @pytest.mark.parametrize(
        ("environ", "names"),
        [
            ({"BACKUP_S3_REGION": "r", "BACKUP_S3_KEY": "e"}, "BACKUP_S3_KEY, BACKUP_S3_REGION"),
            ({"BACKUP_ENCRYPTION": "true"}, "BACKUP_ENCRYPTION"),
            ({"BACKUP_ENCRYPTION_KEY": "hunter2"}, "BACKUP_ENCRYPTION_KEY"),
            ({"BACKUP_ENCRYPTION_KEY_FILE": "/run/secrets/key"}, "BACKUP_ENCRYPTION_KEY_FILE"),
        ],
    )
    def test_it_is_refused_by_name(self, environ: dict[str, str], names: str) -> None:
        """The error names the variables, shows no value, and says what to do."""
        with pytest.raises(UnsupportedError) as caught:
            refuse_unbuilt(load(environ).unbuilt)
        assert f"({names})" in str(caught.value)
        assert "hint: Leave it out" in str(caught.value)
        assert "hunter2" not in str(caught.value)
        assert caught.value.exit_code == 2

    @pytest.mark.parametrize(
        "environ",
        [
            {"BACKUP_S3_BUCKET": "", "BACKUP_DESTINATION": "local"},
            {"BACKUP_ENCRYPTION": "false"},
            {"BACKUP_ENCRYPTION_ENABLED": "0", "BACKUP_ENCRYPTION_KEY": "hunter2"},
        ],
    )
    def test_what_is_switched_off_is_not_asked_for(self, environ: dict[str, str]) -> None:
        """A variable without a value, or one that says no, asks for nothing."""
        assert load(environ).unbuilt == ()


class TestOffsite:
    """The portal's own names for off-site copies have to fit the other settings."""

    def test_a_bucket_by_the_portals_own_names(self) -> None:
        """Bucket, prefix and endpoint of the portal's own names are a destination like one that has a URL."""
        environ = {"BACKUP_S3_BUCKET": "b", "BACKUP_S3_PREFIX": "p/", "BACKUP_S3_ENDPOINT": "http://host"}
        own = load(environ | {"BACKUP_DESTINATION": "s3"}).offsite.destinations()
        assert own == load({"BACKUP_OFFSITE_URLS": "s3://b/p?endpoint=http://host"}).offsite.destinations()

    @pytest.mark.parametrize(
        ("environ", "fault"),
        [
            ({"BACKUP_DESTINATION": "s3"}, "names no bucket"),
            ({"BACKUP_DESTINATION": "local", "BACKUP_S3_BUCKET": "b"}, "has the destination local, but"),
            ({"BACKUP_S3_BUCKET": "b", "BACKUP_OFFSITE_URLS": "s3://c"}, "not among the URLs"),
            ({"BACKUP_ENCRYPTION_ENABLED": "true"}, "names no public key"),
            ({"BACKUP_ENCRYPTION_ENABLED": "false", "BACKUP_ENCRYPTION_RECIPIENTS": RECIPIENT}, "names public keys"),
            ({"BACKUP_OFFSITE_ENCRYPTION": "off", "BACKUP_ENCRYPTION_RECIPIENTS": RECIPIENT}, "names public keys"),
            ({"BACKUP_ENCRYPTION_RECIPIENTS": "AGE-SECRET-KEY-1QQ"}, "secret key"),
            ({"BACKUP_OFFSITE_TYPES": "full other"}, "'other', which is none of"),
        ],
    )
    def test_contradictions_are_refused(self, environ: dict[str, str], fault: str) -> None:
        """Who believes in a copy or in encryption that is not there is told so, before anything is done."""
        with pytest.raises(ConfigurationError, match=fault):
            load(environ)


class TestDocumentation:
    def test_the_table_says_what_the_code_does(self) -> None:
        """docs/settings.md lists exactly the settings, in their order, with meaning, default and secrecy."""
        rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (yes|no) \|$", TABLE.read_text(), flags=re.MULTILINE)
        assert rows == [
            (
                setting.name,
                setting.meaning,
                f"`{setting.default}`" if setting.default else setting.without,
                "yes" if setting.secret else "no",
            )
            for setting in SETTINGS
        ]
