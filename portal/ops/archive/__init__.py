"""The archive format: a plain tar, cut into gzip members that can be compressed, checked and read by themselves.

tar.py      the header bytes of a member
frame.py    one gzip member
index.py    the member table, and where the frames lie
packer.py   a helper process: reads small files and answers with a finished frame
lanes.py    compresses on all cores, hands the frames back in order
writer.py   puts an archive together
reader.py   opens one, and reads a single member of it
plain.py    opens what tar and gzip wrote without any of this

`docs/design.md` has the layout, byte by byte.
"""
