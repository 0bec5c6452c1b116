"""The kernel's events for changes below the uploads, by watchdog, and the moments when some may be lost.

Of watchdog's Linux part four things are changed. The kernel is asked only for what matters here: by default it would
report every file that a backup opens, and the queue would overflow. It is told on when the queue has overflowed, after
watchdog has begun to watch everything anew, and when a directory cannot be watched since the kernel's limit is reached,
which watchdog passes over. And what is below a directory can be watched again: where one is made, filled and renamed at
once, watchdog loses sight of some that are in it, or takes them for what they were called before.
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
        """The receiver of events. It is called from threads of watchdog's."""

        def changed(self, path: str, *, is_tree: bool) -> None:
            """Something has changed, with everything below it or by itself."""

        def begun(self, path: str) -> None:
            """A name is new."""

        def lost(self) -> None:
            """Changes may have been missed."""

        def limited(self, error: OSError) -> None:
            """The kernel watches no more directories."""


LIMITS: Final = frozenset({errno.ENOSPC, errno.ENOMEM, errno.EMFILE})
"""What the kernel answers where one of its limits on watching is reached."""

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


class Sight:
    """Watches a directory and everything below it.

    Arguments:
        root: the directory's real path.
        listener: who is told.
    """

    def __init__(self, root: str, listener: Listener) -> None:
        self._descriptor = _Descriptor(listener)
        self._observer = BaseObserver(_Emitter, inotify_fd=self._descriptor)
        self._observer.schedule(
            _Translator(root, listener), root, recursive=True, event_filter=[*_FILES, *_TREES, FileCreatedEvent]
        )

    def start(self) -> None:
        """Begin; what happens from here on is told.

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
        """Make sure that directories, and all that are below them, are watched by the names that they have now.

        Arguments:
            paths: relative to the root, which has an empty one; what is no directory is passed over.
        """
        for emitter in self._observer.emitters:
            if isinstance(emitter, _Emitter):
                for path in paths:
                    emitter.renew(path)

    def is_alive(self) -> bool:
        """True if everything that this needs still works."""
        threads = (self._descriptor, self._observer, *self._observer.emitters)
        return len(threads) > 2 and all(thread.is_alive() for thread in threads)

    def stop(self) -> None:
        """End; nothing is told afterwards."""
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
        """Watch a directory, or go on watching it: watchdog warns of the latter, with all that it knows in the text."""
        watch = self._get_or_create_watch(path, mask)
        watch.callbacks[id_] = callback
        return watch.wd


class _Emitter(InotifyFullEmitter):
    """Asks for what is wanted, and no more."""

    def on_thread_start(self) -> None:
        self._group = _Group(self._inotify_fd, os.fsencode(self.watch.path), is_recursive=True, event_mask=_WANTED)
        self._inotify = self._group

    def queue_event(self, event: FileSystemEvent) -> None:
        if not event.is_synthetic:  # below a directory that is told of by itself
            super().queue_event(event)

    def renew(self, path: str) -> None:
        """Watch a directory, and all below it, by the names that they have now."""
        self._group.renew(os.path.join(os.fsencode(self.watch.path), encode_name(path)) if path else self._group.path)


class _Group(InotifyWatchGroup):
    """The directories that are watched."""

    def renew(self, top: bytes) -> None:
        """Watch a directory and all below it; the kernel knows those that it watches already, whatever their names."""
        if os.path.islink(top) or not os.path.isdir(top):
            return
        for directory, _, _ in os.walk(top):
            with self._lock:
                if self.is_active:
                    self._add_callback(directory)


class _Translator(FileSystemEventHandler):
    """Turns watchdog's events into changes of paths that are relative to the root."""

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
        """A path as the index writes it; nothing for the root itself, and for what restores keep."""
        relative = decode_name(os.fsencode(path))[self._start :]
        return "" if is_staged(relative) else relative
