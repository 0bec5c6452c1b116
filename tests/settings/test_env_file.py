"""The file of settings: Compose's format, and its place below the environment."""

from __future__ import annotations

import pytest

from portal.ops.errors import ConfigurationError
from portal.ops.settings.env_file import EnvFile, EnvFileError
from portal.ops.settings.env_format import parse_env_file
from portal.ops.settings.load import Secret, effective_settings, load_settings

PATH = "/etc/kekkai-backup/backup.env"


def parse(text: str, **environ: str) -> dict[str, str]:
    return dict(parse_env_file(text, PATH, environ).values)


def file_of(**values: str) -> EnvFile:
    return EnvFile(path=PATH, values=values, lines={name: number for number, name in enumerate(values, 1)})


def no_file(path: str) -> str:
    raise FileNotFoundError(2, "No such file or directory", path)


class TestFormat:
    @pytest.mark.parametrize(
        ("line", "value"),
        [
            ("A=one", "one"),
            ("A = one", "one"),
            ("export A=one", "one"),
            ("  A=one  ", "one"),
            ("A=one two", "one two"),
            ("A=one # comment", "one"),
            ("A=one#two", "one#two"),
            ("A=", ""),
            ("A= # comment", ""),
            ("A='$one \\n'", "$one \\n"),
            ("A='Let\\'s go' # comment", "Let's go"),
            ('A="one\\ttwo \\"three\\""', 'one\ttwo "three"'),
            ('A="a\\$b"', "a$b"),
            ("A=a$$b", "a$b"),
            ("A='one\ntwo'", "one\ntwo"),
            ("A=one=two", "one=two"),
            ("\ufeffA=one\r\nB=two\r\n", "one"),
            ("A=one\nA=two", "two"),
        ],
    )
    def test_a_value_is_read_as_compose_reads_it(self, line: str, value: str) -> None:
        """Quotes, comments, escapes and line ends mean what they mean in an .env file of Compose."""
        assert parse(line)["A"] == value

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("$B", "b"),
            ("x${B}y", "xby"),
            ("${C:-d}", "d"),
            ("${E-d}", ""),
            ("${E:-d}", "d"),
            ("${B:+set}", "set"),
            ("${C:+set}", ""),
            ("${C:-${B}}", "b"),
            ('"${B} ${C:-x y}"', "b x y"),
        ],
    )
    def test_variables_are_inserted(self, value: str, expected: str) -> None:
        """A value can name earlier lines and variables of the environment, with defaults."""
        assert parse(f"E=\nA={value}", B="b")["A"] == expected

    def test_the_environment_comes_before_earlier_lines(self) -> None:
        """What a value names is looked up in the environment first."""
        assert parse("B=file\nA=$B", B="environment")["A"] == "environment"

    def test_comments_blank_lines_and_bare_names_are_no_values(self) -> None:
        """Lines without a value are skipped, and the others keep the numbers of their lines."""
        found = parse_env_file("# a comment\n\nPATH\nA=1\n", PATH, {})
        assert (dict(found.values), dict(found.lines)) == ({"A": "1"}, {"A": 4})

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("A=1\nhunter2 is here", "line 2 is not NAME=value"),
            ("A='hunter2", "line 1: A has a quote that is not closed"),
            ("A='hunter2' more", "line 1: A has a quote that is not closed, or text after its value"),
            ("A=hunter2$word", "line 1 names the variable word, which is not set"),
            ("A=hunter2${word", "line 1 has a '${' that is not closed"),
            ("A=hunter2$", "line 1 has a '$' that starts no variable"),
            ("A=${B:?hunter2}", "line 1 needs B, which is not set"),
        ],
    )
    def test_a_line_that_makes_no_sense_is_named_without_its_value(self, text: str, said: str) -> None:
        """The fault has the number of the line and nothing of what may be a secret."""
        with pytest.raises(EnvFileError) as caught:
            parse(text)
        assert str(caught.value).startswith(said)
        assert "hunter2" not in str(caught.value)


class TestPriority:
    def test_a_file_counts_where_the_environment_has_nothing(self) -> None:
        """Settings of the file apply, those of the environment come first, an empty variable counts as not set."""
        file = file_of(BACKUP_LOCAL_PATH="/file", BACKUP_JOBS="3", BACKUP_RETENTION_DAYS="5")
        loaded = load_settings({"BACKUP_LOCAL_PATH": "/environment", "BACKUP_JOBS": ""}, no_file, file)
        assert (str(loaded.local_path), loaded.jobs, loaded.retention.days) == ("/environment", 3, 5)

    def test_a_secret_of_the_environment_hides_both_forms_in_the_file(self) -> None:
        """A password in the environment beside a password file in the file of settings is not a contradiction."""
        file = file_of(DD_DATABASE_PASSWORD_FILE="/nowhere")
        loaded = load_settings({"DD_DATABASE_PASSWORD": "mine"}, no_file, file)
        assert loaded.database.password == Secret("mine")

    def test_a_url_in_the_file_overrides_nothing_of_the_environment(self) -> None:
        """Single variables of the environment have a higher priority than the parts of a URL in the file."""
        file = file_of(DD_DATABASE_URL="postgres://u:p@from-file:1111/dojo", DD_DATABASE_PORT="2222")
        loaded = load_settings({"DD_DATABASE_HOST": "from-environment"}, no_file, file)
        assert (loaded.database.host, loaded.database.port, loaded.database.name) == ("from-environment", 1111, "dojo")

    def test_a_fault_names_the_file_and_the_line(self) -> None:
        """Whoever has to correct a value is told where it stands."""
        with pytest.raises(ConfigurationError) as caught:
            load_settings({}, no_file, file_of(BACKUP_JOBS="many"))
        assert f"BACKUP_JOBS ({PATH}, line 1): 'many' is not a whole number" in caught.value.message


class TestEffectiveSettings:
    def test_every_setting_has_an_origin(self) -> None:
        """The environment, the file with its line, or the default."""
        file = file_of(BACKUP_JOBS="3", BACKUP_PING_URL_FILE="/s")
        found = effective_settings({"BACKUP_LOCAL_PATH": "/b"}, {"/s": "https://secret"}.__getitem__, file)
        origins = {one.setting.name: (one.shown, one.origin) for one in found}
        assert origins["BACKUP_LOCAL_PATH"] == ("/b", "environment")
        assert origins["BACKUP_JOBS"] == ("3", f"{PATH}, line 1")
        assert origins["BACKUP_RETENTION_DAYS"] == ("30", "default")
        assert origins["BACKUP_PING_URL"] == ("********", f"{PATH}, line 2 (BACKUP_PING_URL_FILE)")

    def test_a_value_that_cannot_be_used_has_its_fault(self) -> None:
        """One bad value does not hide the others, and a bad secret is not shown."""
        found = {
            one.setting.name: one
            for one in effective_settings({"BACKUP_JOBS": "x", "DD_DATABASE_URL": "hunter2"}, no_file)
        }
        assert "not a whole number" in found["BACKUP_JOBS"].fault
        assert found["DD_DATABASE_URL"].fault
        assert "hunter2" not in repr(found["DD_DATABASE_URL"])
        assert not found["BACKUP_LOCAL_PATH"].fault
