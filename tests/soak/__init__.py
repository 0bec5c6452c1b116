"""A soak: the whole service under load, while something is killed, frozen, cut off or filled every few seconds.

    world     a portal with its servers, the four services that systemd would restart, and a repository on a small disk
    actors    somebody writes rows and uploads; two operators type commands
    faults    what happens to the world meanwhile
    judge     afterwards: is everything there that was ever reported?

`tools/test.sh --soak [minutes] [seed]` runs it; it is no part of the ordinary tests, since chance decides what happens.
"""
