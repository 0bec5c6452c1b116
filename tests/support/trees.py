"""Trees of files that Hypothesis draws."""

from __future__ import annotations

import os
from dataclasses import dataclass

from hypothesis import strategies as st

MIB = 1 << 20

SECOND = 1_000_000_000


def _is_name(name: bytes) -> bool:
    return name not in (b".", b"..") and not set(name) & {0, ord("/")}


SIZES = [0, 1, 511, 512, 513, 1023, 1024, 1025, MIB - 513, MIB - 1, MIB, MIB + 1, 2 * MIB + 511]

names = st.one_of(
    st.binary(min_size=1, max_size=12).filter(_is_name),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).map(str.encode).filter(_is_name),
    st.integers(90, 255).map(lambda length: b"n" * length),
)

times = st.one_of(
    st.integers(-(2**31) * SECOND, 2**33 * SECOND), st.integers(-(2**31), 2**33).map(lambda seconds: seconds * SECOND)
)

contents = st.one_of(
    st.binary(max_size=600),
    st.tuples(st.binary(min_size=1, max_size=40), st.sampled_from(SIZES)).map(
        lambda drawn: (drawn[0] * (drawn[1] // len(drawn[0]) + 1))[: drawn[1]]
    ),
)


@dataclass(frozen=True, kw_only=True)
class Node:
    """A member of a tree that hypothesis has drawn."""

    name: bytes
    mode: int
    mtime_ns: int
    content: bytes = b""
    hole: int = 0
    target: bytes | None = None
    link_to: int | None = None
    children: tuple[Node, ...] | None = None


shared = {"name": names, "mode": st.integers(0, 0o7777).map(lambda mode: mode | 0o600), "mtime_ns": times}

leaves = st.one_of(
    st.builds(Node, **shared, content=contents),
    st.builds(Node, **shared, content=contents, hole=st.sampled_from([4096, 3 * MIB])),
    st.builds(Node, **shared, target=st.binary(min_size=1, max_size=150).filter(lambda target: 0 not in target)),
    st.builds(Node, **shared, link_to=st.integers(0, 7)),
)


def _directory(children: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    inside = st.lists(children, max_size=5, unique_by=lambda node: node.name).map(tuple)
    return st.builds(Node, **(shared | {"mode": st.integers(0, 0o7777).map(lambda m: m | 0o700)}), children=inside)


trees = _directory(st.recursive(leaves, _directory, max_leaves=12))


def grow(path: bytes, node: Node, files: list[bytes]) -> None:
    """Make a node and all below it; a directory's time comes last."""
    if node.children is not None:
        os.mkdir(path)
        for child in node.children:
            grow(os.path.join(path, child.name), child, files)
    elif node.target is not None:
        os.symlink(node.target, path)
        os.utime(path, ns=(0, node.mtime_ns), follow_symlinks=False)
        return
    elif node.link_to is not None and files:
        os.link(files[node.link_to % len(files)], path)
        return
    else:
        with open(path, "wb") as file:
            file.write(node.content)
            file.seek(node.hole, os.SEEK_END)
            file.truncate(max(file.tell(), len(node.content)))
        files.append(path)
    os.chmod(path, node.mode)
    os.utime(path, ns=(0, node.mtime_ns))
