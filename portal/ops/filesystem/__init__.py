"""Trees of files: reached from their top through directory descriptors, with what a file has beside its content.

Promises that no operation follows a symbolic link out of a tree, whatever is exchanged in it meanwhile, and that the
length of a path is no limit. May import runtime and the pure core.
"""
