"""The watcher of the uploads: gets new uploads backed up within seconds.

    inotify      receives the kernel's events for changes below the uploads, through watchdog
    mounts       detects file systems without such events
    debounce     collects changes until there is a pause
    exclusions   leaves out files of this system
    change_set   the changes for one task
    outbox       sends tasks, and keeps on the disk what cannot be sent
    loop         connects these, and decides when the whole tree is to be scanned

Events are hints, a scan is the truth: a task that examines the whole tree finds whatever was missed. No part keeps a
list of existing files: cost and memory depend only on changes and on the number of directories.
"""
