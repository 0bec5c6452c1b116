"""Reading a program that writes little at a time."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

import pytest

from portal.ops.runtime import process
from portal.ops.runtime.process import SystemRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOM = 1 << 17


class Source:
    """The end of a pipe that a program writes to, and the reader at the other."""

    def __init__(self) -> None:
        reading, self.writing = os.pipe()
        self.reader = process._WakefulReader(io.FileIO(reading))

    def read(self, room: int = ROOM) -> bytes:
        """Read once."""
        buffer = bytearray(room)
        count = self.reader.readinto(memoryview(buffer))
        return bytes(buffer[:count])


@pytest.fixture
def source() -> Iterator[Source]:
    """An open pipe."""
    made = Source()
    yield made
    made.reader.close()
    if made.writing >= 0:
        os.close(made.writing)


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], list[float]]:
    """Replaces waiting by something that happens meanwhile; returns how long it would have been, each time."""

    def replace(happens: Callable[[], object]) -> list[float]:
        pauses: list[float] = []

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            happens()

        monkeypatch.setattr("portal.ops.runtime.process.time.sleep", pause)
        return pauses

    return replace


def test_what_comes_meanwhile_is_read_with_it(
    source: Source, meanwhile: Callable[[Callable[[], object]], list[float]]
) -> None:
    """A little is not read at once: more comes in a moment."""
    os.write(source.writing, b"one")
    pauses = meanwhile(lambda: os.write(source.writing, b", two"))
    assert source.read() == b"one, two"
    assert pauses == [0.001]


def test_enough_is_read_at_once(source: Source, meanwhile: Callable[[Callable[[], object]], list[float]]) -> None:
    """Whoever wants no more than there is does not wait."""
    os.write(source.writing, b"one")
    pauses = meanwhile(lambda: None)
    assert source.read(room=3) == b"one"
    assert not pauses


def test_half_a_pipe_is_enough(
    source: Source, meanwhile: Callable[[Callable[[], object]], list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much is wanted: the program must not have to wait for room."""
    monkeypatch.setattr(process, "_WORTH_READING_BYTES", 1 << 12)
    pauses = meanwhile(lambda: None)
    os.write(source.writing, bytes(1 << 12))
    assert len(source.read()) == 1 << 12
    os.write(source.writing, bytes((1 << 12) - 1))
    assert len(source.read()) == (1 << 12) - 1
    assert len(pauses) == 1


def test_the_end_is_not_waited_for(source: Source, meanwhile: Callable[[Callable[[], object]], list[float]]) -> None:
    """After the end nothing more can come."""
    os.write(source.writing, b"last")
    os.close(source.writing)
    source.writing = -1
    pauses = meanwhile(lambda: None)
    assert [source.read(), source.read()] == [b"last", b""]
    assert not pauses


def test_nothing_is_lost() -> None:
    """All of a program's output arrives, in order, however it is cut."""
    script = "import os\nfor number in range(2000): os.write(1, b'%08d' % number)"
    running = SystemRunner().start(["python3", "-c", script], environment={"PATH": os.environ["PATH"]})
    assert running.stdout.read() == b"".join(b"%08d" % number for number in range(2000))
    assert running.wait() == 0
