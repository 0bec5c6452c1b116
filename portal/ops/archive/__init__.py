"""The archive format: a plain tar, cut into gzip members, each of which can be compressed, checked and read alone.

Promises that this engine, `tar` and `gunzip` read the same content from an archive, and that everything read is
checked. May import filesystem, runtime, settings and the pure core.

    tar, frame, index                      the bytes: headers, gzip members, the table of members
    writer, compressor_pool, packer        make an archive; the packer is a helper process for small files
    reader, plain, open, protocol          open one, with an index or without
    runs, read_ahead                       which members can be read by themselves, and reading before it is needed

`docs/design.md` has the layout, byte by byte.
"""
