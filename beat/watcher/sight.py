"""What the kernel tells of changes below the uploads, by watchdog; and when it may not have told everything.

Of watchdog's Linux part three things are changed. The kernel is asked only for what matters here: by default it would
report every file that a backup opens, and the queue would overflow. It is told on when the queue has overflowed, after
watchdog has begun to watch everything anew. And it is told on when a directory cannot be watched since the kernel's
limit is reached, which watchdog passes over.
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
from watchdog.observers.inotify import InotifyFullEmitter
from watchdog.observers.inotify_c import InotifyConstants, InotifyFD, Mask

from beat.watcher.own import is_staged
from portal.ops.archive.index import decode_name

if TYPE_CHECKING:
    from typing import Protocol

    from watchdog.observers.inotify_c import CallbackId, InotifyEvent, WatchCallback, WatchDescriptor

    class Listener(Protocol):
        """Who is told. It is called from threads of watchdog's."""

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

    def is_alive(self) -> bool:
        """Whether everything that this needs still works."""
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


class _Emitter(InotifyFullEmitter):
    """Asks for what is wanted, and no more."""

    def get_event_mask_from_filter(self) -> Mask:
        return _WANTED

    def queue_event(self, event: FileSystemEvent) -> None:
        if not event.is_synthetic:  # below a directory that is told of by itself
            super().queue_event(event)


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
