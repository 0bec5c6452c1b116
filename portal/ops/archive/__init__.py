"""The archive format: a plain tar, cut into gzip members that can be compressed, checked and read by themselves.

tar.py      the header bytes of a member
frame.py    one gzip member
index.py    the member table, and where the frames lie
packer.py   a helper process: reads small files and answers with a finished frame
lanes.py    compresses on all cores, hands the frames back in order
helper.py   starts a helper process; messages.py is how one talks to it
writer.py   puts an archive together
reader.py   opens one, and reads a single member of it
runs.py     which members can be read without the others
plain.py    opens what tar and gzip wrote without any of this

`docs/design.md` has the layout, byte by byte.
"""
