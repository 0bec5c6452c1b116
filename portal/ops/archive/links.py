"""The targets of symlinks, judged by their text alone, since the target may change later."""

from __future__ import annotations


def leads_out(path: str, link: str, top: str = "") -> bool:
    """True if a symlink may lead out of the tree that it lies in.

    `..` counts only at the start of the target, where the directory that it is taken from is known to be real; later
    on it could be taken from wherever another symlink leads.

    Arguments:
        path: where the link is.
        link: what it points to.
        top: the top of the tree, as a part of the path; empty where the path is relative to it.
    """
    names = [name for name in link.split("/") if name not in ("", ".")]
    up = next((number for number, name in enumerate(names) if name != ".."), len(names))
    depth = path.count("/") - (top.count("/") + 1 if top else 0)
    return link.startswith("/") or up > depth or ".." in names[up:]
