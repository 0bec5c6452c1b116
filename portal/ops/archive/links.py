"""Judges symlink targets by their text alone, since the file system may change later."""

from __future__ import annotations


def leads_out(path: str, link: str, top: str = "") -> bool:
    """True if a symlink may lead out of its tree.

    `..` is allowed only at the start of the target, where it applies to a directory known to be real. Later in the
    target it would apply to wherever another symlink leads.

    Arguments:
        path: the path of the link.
        link: its target.
        top: the top of the tree, as a part of the path; empty if the path is relative to it.
    """
    names = [name for name in link.split("/") if name not in ("", ".")]
    up = next((number for number, name in enumerate(names) if name != ".."), len(names))
    depth = path.count("/") - (top.count("/") + 1 if top else 0)
    return link.startswith("/") or up > depth or ".." in names[up:]
