"""Receives the kernel's events for changes below the uploads through watchdog, and notices when some may be lost.

Four things are changed in watchdog's Linux part. Only the needed events are requested: by default, every file that a
backup opens would be reported, and the queue would overflow. An overflow of the queue is reported, after watchdog has
started to watch everything again. So is a directory that cannot be watched because of a kernel limit, which watchdog
ignores. And everything below a directory can be watched again: if one is created, filled and renamed quickly, watchdog
loses directories in it, or uses their old names.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from watchdog.events import (
    DirAttribEvent,
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileAttribEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyFullEmitter, InotifyWatchGroup
from watchdog.observers.inotify_c import InotifyConstants, InotifyFD, Mask

from beat.watcher.exclusions import is_staged
from portal.ops.archive.index import decode_name, encode_name

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    from watchdog.observers.inotify_c import CallbackId, InotifyEvent, WatchCallback, WatchDescriptor

    class Listener(Protocol):
        """The receiver of events, called from watchdog's threads."""

        def changed(self, path: str, *, is_tree: bool) -> None:
            """An entry has changed, alone or with everything below it."""

        def begun(self, path: str) -> None:
            """A name was created."""

        def lost(self) -> None:
            """Changes may have been missed."""

        def limited(self, error: OSError) -> None:
            """The kernel cannot watch more directories."""


LIMITS: Final = frozenset({errno.ENOSPC, errno.ENOMEM, errno.EMFILE})
"""The kernel's errors for its limits on watching."""

_WANTED: Final = Mask(
    InotifyConstants.IN_CLOSE_WRITE
    | InotifyConstants.IN_MOVE
    | InotifyConstants.IN_CREATE
    | InotifyConstants.IN_DELETE
    | InotifyConstants.IN_DELETE_SELF
    | InotifyConstants.IN_ATTRIB
    | InotifyConstants.IN_DONT_FOLLOW
    | InotifyConstants.IN_ONLYDIR
)
_FILES: Final = (FileClosedEvent, FileAttribEvent, FileDeletedEvent, FileMovedEvent)
_TREES: Final = (DirCreatedEvent, DirAttribEvent, DirDeletedEvent, DirMovedEvent)


class Inotify:
    """Watches a directory and everything below it.

    Arguments:
        root: the directory's real path.
        listener: receives the events.
    """

    def __init__(self, root: str, listener: Listener) -> None:
        self._descriptor = _Descriptor(listener)
        self._observer = BaseObserver(_Emitter, inotify_fd=self._descriptor)
        self._observer.schedule(
            _Translator(root, listener), root, recursive=True, event_filter=[*_FILES, *_TREES, FileCreatedEvent]
        )

    def start(self) -> None:
        """Start to watch; changes from now on are reported.

        Raises:
            OSError: the directory cannot be watched.
        """
        try:
            self._descriptor.start()
            self._observer.start()
        except BaseException:
            self.stop()
            raise

    def renew(self, paths: Iterable[str]) -> None:
        """Make sure that directories and everything below them are watched under their present names.

        Arguments:
            paths: paths relative to the root, which is empty; others than directories are ignored.
        """
        for emitter in self._observer.emitters:
            if isinstance(emitter, _Emitter):
                for path in paths:
                    emitter.renew(path)

    def is_alive(self) -> bool:
        """True if all threads are running."""
        threads = (self._descriptor, self._observer, *self._observer.emitters)
        return len(threads) > 2 and all(thread.is_alive() for thread in threads)

    def stop(self) -> None:
        """Stop; nothing is reported afterwards."""
        if self._observer.is_alive():
            self._observer.stop()
            self._observer.join()
        self._descriptor.stop()
        if self._descriptor.is_alive():
            self._descriptor.join()


class _Descriptor(InotifyFD):
    """The kernel's queue of events."""

    def __init__(self, listener: Listener) -> None:
        super().__init__()
        self._listener = listener

    def handle_event(self, event: InotifyEvent) -> None:
        super().handle_event(event)
        if event.is_queue_overflow:
            self._listener.lost()

    def add_callback(self, path: bytes, mask: Mask, callback: WatchCallback, id_: CallbackId) -> WatchDescriptor:
        try:
            return super().add_callback(path, mask, callback, id_)
        except OSError as error:
            if error.errno in LIMITS:
                self._listener.limited(error)
            raise

    def _add_callback(self, path: bytes, mask: Mask, callback: WatchCallback, id_: CallbackId) -> WatchDescriptor:
        """Watch a directory, or continue to; for the latter watchdog would log a warning with its whole state."""
        watch = self._get_or_create_watch(path, mask)
        watch.callbacks[id_] = callback
        return watch.wd


class _Emitter(InotifyFullEmitter):
    """Requests only the needed events."""

    def on_thread_start(self) -> None:
        self._group = _Group(self._inotify_fd, os.fsencode(self.watch.path), is_recursive=True, event_mask=_WANTED)
        self._inotify = self._group

    def queue_event(self, event: FileSystemEvent) -> None:
        if not event.is_synthetic:  # below a directory that is reported itself
            super().queue_event(event)

    def renew(self, path: str) -> None:
        """Watch a directory and everything below it under their present names."""
        self._group.renew(os.path.join(os.fsencode(self.watch.path), encode_name(path)) if path else self._group.path)


class _Group(InotifyWatchGroup):
    """The watched directories."""

    def renew(self, top: bytes) -> None:
        """Watch a directory and everything below it; the kernel recognises those watched under other names."""
        if os.path.islink(top) or not os.path.isdir(top):
            return
        for directory, _, _ in os.walk(top):
            with self._lock:
                if self.is_active:
                    self._add_callback(directory)


class _Translator(FileSystemEventHandler):
    """Translates watchdog's events into changes of paths relative to the root."""

    def __init__(self, root: str, listener: Listener) -> None:
        self._start = len(root.rstrip("/")) + 1
        self._listener = listener

    def dispatch(self, event: FileSystemEvent) -> None:
        paths = [path for path in map(self._relative, (event.src_path, event.dest_path)) if path]
        if isinstance(event, FileCreatedEvent):
            for path in paths:
                self._listener.begun(path)
        elif isinstance(event, (*_FILES, *_TREES)):
            for path in paths:
                self._listener.changed(path, is_tree=isinstance(event, _TREES))

    def _relative(self, path: bytes | str) -> str:
        """A path as the index writes it; empty for the root itself, and for a restore's own directory."""
        relative = decode_name(os.fsencode(path))[self._start :]
        return "" if is_staged(relative) else relative
