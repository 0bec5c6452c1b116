"""The watcher of the uploads: has what was uploaded backed up within seconds.

    sight        what the kernel tells of changes below the uploads, by watchdog
    mounts       whether it can tell
    gathering    changes add up until it is quiet
    own          what this system itself has written is no change
    outbox       one task for what has changed; kept on the disk where nobody takes it
    loop         these together, and the times when the whole tree is to be looked at

Events are hints, a scan is the truth: whatever may have been missed is found by a task that looks at the whole tree.
No part keeps a list of the files that are there: cost and memory are a matter of what changes, and of the directories.
"""
