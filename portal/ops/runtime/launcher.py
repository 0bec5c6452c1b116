"""Runs a program that ends when the process that started it ends, even by SIGKILL.

    python -I -S launcher.py <parent pid> <signal> <uid:gid or -> <program> [argument ...]

This file is run, never imported: it uses only the standard library, and replaces itself with the program. Doing this
between fork and exec in Python (``preexec_fn``) is unsafe in a process with threads.

The kernel sends the signal when the *thread* that started the child ends, so start a child in a thread that outlives
it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
CANNOT_RUN = 127


def become(uid: int, gid: int) -> None:
    """Become this user and group, without supplementary groups."""
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def tie_to(parent: int, death_signal: int) -> None:
    """Have the kernel send `death_signal` when the parent ends; exit now if it has already ended."""
    # A change of user clears this request, so it comes after it. The parent may have ended before, so that is checked.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(CANNOT_RUN)


def main() -> None:
    """Prepare this process according to the arguments, then execute the program."""
    parent, death_signal, owner, *argv = sys.argv[1:]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a worker's process ignores it, and the program would inherit that
    if owner != "-":
        become(*map(int, owner.split(":")))
    tie_to(int(parent), int(death_signal))
    try:
        os.execv(argv[0], argv)  # noqa: S606
    except OSError as error:
        print(f"cannot run {argv[0]}: {error.strerror}", file=sys.stderr)  # noqa: T201
        sys.exit(CANNOT_RUN)


if __name__ == "__main__":
    main()
