"""Which commands of the remote control a worker obeys: questions, and those that a key of the repository has signed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery.app.control import Control

from worker import remote_control as module
from worker.keys import DIRECTORY, NAME, TaskKeys
from worker.kombu_internals import CheckedNode
from worker.remote_control import ASKING, FIELD, SignedControl, check_commands, sign_command

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_795_910_400.0


class Node:
    """A node that checks commands, at a time that a test sets."""

    def __init__(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = NOW
        self.keys = TaskKeys(repository)
        monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: self.now))
        monkeypatch.setattr(CheckedNode, "is_allowed", None, raising=False)
        check_commands(self.keys)

    def signed(self, command: str = "revoke", **arguments: Any) -> dict[str, Any]:
        """The arguments of a command with their signature."""
        return arguments | {FIELD: sign_command(self.keys.current(), command, arguments)}

    def obeys(self, given: dict[str, Any], command: str = "revoke") -> bool:
        """Whether it executes a command; the signature is not passed on."""
        arguments = dict(given)
        is_allowed: bool = CheckedNode.is_allowed(command, arguments)
        assert arguments == {name: value for name, value in given.items() if name != FIELD}
        return is_allowed


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, monkeypatch)


def test_questions_need_no_signature(node: Node) -> None:
    """Whatever is in its place; `hello` is none, since it can revoke tasks."""
    for command in ASKING:
        assert node.obeys({"a": 1}, command)
        assert node.obeys({FIELD: 7}, command)
    assert not any(node.obeys({}, command) for command in ("hello", "shutdown", "pool_grow", ""))


def test_a_signed_command_is_obeyed_once(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """Another one with the same words has another signature; what is refused is logged."""
    command = node.signed(task_id="one")
    assert node.obeys(command)
    assert caplog.text == ""
    assert not node.obeys(command)
    assert "event='command_rejected' command='revoke'" in caplog.text
    assert node.obeys(node.signed(task_id="one"))
    node.now += 1
    assert not node.obeys(command)


def test_a_signature_is_good_for_its_words_alone(node: Node, tmp_path: Path) -> None:
    """For another command, other arguments, or with other facts it is none."""
    command = node.signed(task_id="one")
    assert not node.obeys(command, "shutdown")
    assert not node.obeys(command | {"task_id": "two"})
    assert not node.obeys(command | {"more": 1})
    changes: list[dict[str, Any]] = [{"at": NOW + 1}, {"once": "x"}, {"key": "x"}, {"key": None}, {"mac": "0" * 64}]
    changes += [{"mac": None}, {"mac": 7}, {"mac": "é"}, {"mac": "\udcff"}, {"at": None}, {"at": "x"}, {"at": [NOW]}]
    for change in changes:
        assert not node.obeys(command | {FIELD: command[FIELD] | change})
    nothing: list[Any] = [None, 7, "x", [], {}]
    for instead in nothing:
        assert not node.obeys(command | {FIELD: instead})
    assert not node.obeys({"task_id": "one"})
    other = sign_command(TaskKeys(tmp_path / "other").current(), "revoke", {"task_id": "one"})
    assert not node.obeys(command | {FIELD: other})
    assert node.obeys(command)


def test_a_retired_key_signs_as_well(node: Node) -> None:
    """As long as it is known by its name."""
    command = node.signed()
    node.keys.rotate()
    assert node.obeys(command)
    assert node.obeys(node.signed())


@pytest.mark.parametrize(("seconds", "is_obeyed"), [(-301, False), (-300, True), (300, True), (301, False)])
def test_a_signature_is_good_for_five_minutes(node: Node, seconds: int, is_obeyed: bool) -> None:
    """In both directions, since clocks differ."""
    command = node.signed()
    node.now += seconds
    assert node.obeys(command) is is_obeyed


def test_signatures_are_remembered_as_long_as_they_are_good(node: Node) -> None:
    """For ten minutes after their use: they may be five ahead."""
    used = {"old": NOW - 601, "young": NOW - 600}
    given = node.signed()
    signature = given.pop(FIELD)
    assert module._is_signed(node.keys, used, "revoke", given, signature)
    assert used == {"young": NOW - 600, signature["mac"]: NOW}


def test_without_its_keys_a_worker_obeys_no_command(node: Node, tmp_path: Path) -> None:
    """And answers questions."""
    command = node.signed()
    (tmp_path / DIRECTORY / NAME).write_text("{}")
    assert not node.obeys(command)
    assert node.obeys({}, "ping")


def test_each_signature_is_one_of_its_own(node: Node) -> None:
    """With the key's name, its moment and something that nobody else has."""
    first, second = (node.signed()[FIELD] for _ in range(2))
    assert first.keys() == {"key", "at", "once", "mac"}
    assert (first["key"], first["at"]) == (node.keys.current().name, NOW)
    assert len(first["once"]) == 16 and first["once"] != second["once"]


def test_what_we_send_is_signed_where_it_has_to_be(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question goes as it is, and needs no key."""
    sent: list[tuple[Any, ...]] = []

    def broadcast(_: Any, command: str, arguments: Any, *rest: Any, **options: Any) -> str:
        sent.append((command, arguments, rest, options))
        return "answers"

    monkeypatch.setattr(Control, "broadcast", broadcast)
    control = SignedControl.__new__(SignedControl)
    control.app = SimpleNamespace()
    assert control.broadcast("ping") == "answers"
    assert control.broadcast("stats", {"a": 1}, ["to"], reply=True) == "answers"
    assert sent == [("ping", {}, (), {}), ("stats", {"a": 1}, (["to"],), {"reply": True})]
    control.app = SimpleNamespace(task_keys=node.keys)
    given = {"task_id": "one"}
    assert control.broadcast("revoke", given, reply=False) == "answers"
    command, arguments, rest, options = sent[-1]
    assert (command, rest, options, given) == ("revoke", (), {"reply": False}, {"task_id": "one"})
    assert node.obeys(arguments)
