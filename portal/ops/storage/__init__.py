"""Storage: off-site stores behind one small protocol, and encryption of what goes there.

Promises that an object is stored completely or not at all, that nothing is overwritten, and that every failure is an
error of ours with a hint. Knows objects and bytes, not archives. May import filesystem, runtime, settings and the core.
"""
