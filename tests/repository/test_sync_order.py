"""The order of syncs: what was reported as done is on the disk, names too."""
