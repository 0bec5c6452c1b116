"""The smoke test: the compose files on a real container engine, with the commands of docs/containers.md.

    tools/test.sh --containers [--base-image IMAGE] [--redis-image IMAGE] [--postgres-image IMAGE]
                               [--pgdg-mirror URL] [--postgres-majors "17"] [--pip-index-url URL] [--directory DIR]

It needs `docker` with Compose, as a user who may use it, and about five minutes. It is no part of the ordinary run.
"""
