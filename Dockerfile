# One image for every service (worker, beat, watcher, Flower) and for the commands. Build arguments replace whatever comes
# from the internet: the base image, the PostgreSQL project's packages and the Python packages. docs/containers.md has
# examples.
ARG BASE_IMAGE=python:3.12-slim-trixie
FROM $BASE_IMAGE

# PostgreSQL programs of every major version that a portal may run; the server's version decides which are used.
# The client programs dump and restore. The server programs recover a moment of the past in a scratch server, which needs
# the same major version; leave POSTGRES_SERVERS empty where that is not wanted.
# With an empty PGDG_MIRROR only the base image's own distribution is asked, so name only versions that it has.
ARG POSTGRES_CLIENTS="15 16 17 18"
ARG POSTGRES_SERVERS="15 16 17 18"
# A scratch server opens a database only with the locale that it has on its own server; C and C.UTF-8 are always there.
ARG LOCALES="en_US.UTF-8"
ARG PGDG_MIRROR=https://apt.postgresql.org/pub/repos/apt
# postgresql-common brings the key of the PostgreSQL project's packages, signed by the distribution, and makes a cluster
# for every server that is installed unless it is told not to.
RUN export DEBIAN_FRONTEND=noninteractive \
    && apt-get update \
    && apt-get install --yes --no-install-recommends locales postgresql-common \
    && for locale in $LOCALES; do localedef -i "${locale%%.*}" -c -f "${locale#*.}" "$locale"; done \
    && printf 'create_main_cluster = false\n' >/etc/postgresql-common/createcluster.conf \
    && if [ -n "$PGDG_MIRROR" ]; then \
        . /etc/os-release \
        && printf 'deb [signed-by=/usr/share/postgresql-common/pgdg/apt.postgresql.org.asc] %s %s-pgdg main\n' \
            "$PGDG_MIRROR" "$VERSION_CODENAME" >/etc/apt/sources.list.d/pgdg.list \
        && apt-get update; \
    fi \
    && set -- \
    && for major in $POSTGRES_CLIENTS; do set -- "$@" "postgresql-client-$major"; done \
    && for major in $POSTGRES_SERVERS; do set -- "$@" "postgresql-$major"; done \
    && apt-get install --yes --no-install-recommends --option Dpkg::Options::=--force-confold "$@" \
    && rm -rf /var/lib/apt/lists/*

# The locked packages, in a layer of their own that a change of our code leaves as it is. Only wheels: nothing is
# compiled, so there is no compiler to remove. The commands find the environment where they would have made it.
# PIP_INDEX_URL names a mirror of PyPI. It stays in the image's history, so it is no place for a password.
ARG PIP_INDEX_URL
WORKDIR /opt/kekkai
COPY pyproject.toml README.md ./
COPY tools/__init__.py tools/setup.sh tools/constraints.txt tools/
RUN mkdir -p portal worker beat \
    && PIP_NO_CACHE_DIR=1 PIP_ONLY_BINARY=:all: tools/setup.sh

COPY portal portal
COPY worker worker
COPY beat beat
COPY tools tools
RUN ln -s tools scripts \
    && chmod -R a+rX portal worker beat tools \
    && .venv/bin/python -m compileall -q portal worker beat tools

# The user that owns the portal's uploads, since nobody else may read them; see docs/containers.md.
ARG KEKKAI_UID=10001
ARG KEKKAI_GID=10001
RUN groupadd --non-unique --gid "$KEKKAI_GID" kekkai \
    && useradd --non-unique --uid "$KEKKAI_UID" --gid kekkai --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin kekkai \
    && install -d -m 700 -o kekkai -g kekkai \
        /var/lib/kekkai-backup /var/lib/kekkai-portal /var/lib/kekkai-portal/uploads /var/lib/flower \
        /var/lib/kekkai-backup-state

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Kekkai Portal backup" \
    org.opencontainers.image.description="Backup and restore for Kekkai Portal: database, uploads and audit log" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION"

# The root file system is read-only where we run (compose.yaml): nothing of ours writes to it.
ENV PATH=/opt/kekkai/.venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    BACKUP_LOG_FORMAT=json
USER $KEKKAI_UID:$KEKKAI_GID
CMD ["python", "-m", "worker"]
