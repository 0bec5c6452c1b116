"""Trees of files, accessed from their top through directory descriptors, with attributes and extents of files.

Promises that no operation follows a symbolic link out of a tree, even if entries are exchanged meanwhile, and that
paths may have any length. May import runtime, settings and the core.
"""
