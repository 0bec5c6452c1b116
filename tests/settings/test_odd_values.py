"""Values that no parser of settings expects."""

from __future__ import annotations

import pytest

from portal.ops.errors import ConfigurationError
from portal.ops.settings.load import SETTINGS, Setting, load_settings

NASTY = (
    *("", "//[", "http://[", "http://a:99999/", "http://a\u2100b/", "postgres://[/x", "s3://[x", "sftp://u@[::1/x"),
    *(
        "0 0 * * 0#9",
        "*/0 * * * *",
        "1-0 * * * *",
        "9" * 30 + "d",
        "../..",
        "Europe",
        "\u0663",
        "'",
        "\ud800",
        "a.b=..",
    ),
)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_no_text_makes_a_parser_fail_in_another_way(setting: Setting[object]) -> None:
    """Whatever a variable holds is accepted, or refused with its name; no library's error comes through."""
    others: list[tuple[str, Exception]] = []
    for text in NASTY:
        try:
            load_settings({"BACKUP_LOCAL_PATH": "/archives", setting.name: text}, lambda _: "secret")
        except ConfigurationError:
            continue
        except Exception as error:
            others.append((text, error))
    assert others == []
