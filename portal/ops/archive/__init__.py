"""The archive format: a plain tar, cut into gzip members that can be compressed, checked and read by themselves.

Promises that an archive says the same to this engine, to tar and to gunzip, and that nothing is read from it unchecked.
May import runtime and the pure core.

    tar, frame, index                      the bytes: headers, gzip members, the table of members
    writer, compressor_pool, packer        make an archive; the packer is a helper process for small files
    reader, plain, open, protocol          open one, with an index or without
    runs, read_ahead                       which members can be read by themselves, and reading before it is needed

`docs/design.md` has the layout, byte by byte.
"""
