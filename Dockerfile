# syntax=docker/dockerfile:1

# One image for all that we run: worker, beat, watcher, Flower, and the commands of a person.
FROM python:3.12-slim-trixie

# The key as Debian's package postgresql-common has it; the build ends where it is another one.
ADD --checksum=sha256:0144068502a1eddd2a0280ede10ef607d1ec592ce819940991203941564e8e76 --chmod=644 \
    https://www.postgresql.org/media/keys/ACCC4CF8.asc /usr/share/keyrings/pgdg.asc

# Client programs of every major version that a portal may run: the right one is chosen by the server's.
RUN . /etc/os-release \
    && printf 'deb [signed-by=/usr/share/keyrings/pgdg.asc] https://apt.postgresql.org/pub/repos/apt %s-pgdg main\n' \
        "$VERSION_CODENAME" >/etc/apt/sources.list.d/pgdg.list \
    && apt-get update \
    && apt-get install --yes --no-install-recommends \
        postgresql-client-15 postgresql-client-16 postgresql-client-17 postgresql-client-18 \
    && rm -rf /var/lib/apt/lists/*

# The user that owns the portal's uploads, since nobody else may read them; see docs/operations.md.
ARG KEKKAI_UID=10001
ARG KEKKAI_GID=10001
RUN groupadd --non-unique --gid "$KEKKAI_GID" kekkai \
    && useradd --non-unique --uid "$KEKKAI_UID" --gid kekkai --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin kekkai \
    && install -d -m 700 -o kekkai -g kekkai \
        /var/lib/kekkai-portal /var/lib/kekkai-portal/backups /var/lib/kekkai-portal/uploads /var/lib/flower

# The locked packages, in a layer of their own that a change of our code leaves as it is. Only wheels: nothing is
# compiled, so there is no compiler to remove. The commands find the environment where they would have made it.
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
