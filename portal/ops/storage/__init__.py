"""Storage: off-site stores behind one small protocol, and the encryption of what goes there.

Promises that an object is stored whole under its name or not at all, that nothing is ever overwritten, and that every
failure is an error of ours with a hint. Knows objects and bytes, never archives. May import runtime, settings and the
core.
"""
