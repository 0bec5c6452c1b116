#!/usr/bin/env bash
# Makes the secret files that compose.yaml names, and keeps those that exist.
#
#   tools/secrets.sh [--env-file FILE] [directory]
#
# The database's password is asked for on a terminal, or read from standard input. FILE (default: .env) is what
# `docker compose --env-file` gets; the directory is KEKKAI_SECRETS there (default: secrets).
set -euo pipefail
umask 077

self=$(readlink -f -- "${BASH_SOURCE[0]}")
root=${self%/*/*}
env_file=$root/.env
oldest_engine=25.0
oldest_compose=2.24

# fail <message> <hint>
fail() {
    printf 'secrets: %s\n  hint: %s\n' "$1" "$2" >&2
    exit 2
}

# setting <name> <default>: the value from the environment or the env file.
setting() {
    local name=$1 value=${!1:-}
    if [[ -z $value && -r $env_file ]]; then
        value=$(sed -n "s/^$name=//p" "$env_file" | tail -n 1)
    fi
    printf '%s' "${value:-$2}"
}

# is_at_least <version> <oldest>
is_at_least() {
    printf '%s\n' "$2" "${1#v}" | sort --check=quiet --version-sort
}

# check_docker: compose.yaml uses what older releases do not know, and their own messages do not say so.
check_docker() {
    command -v docker >/dev/null || return 0
    local engine compose
    compose=$(docker compose version --short 2>/dev/null || docker-compose version --short 2>/dev/null) || true
    [[ -n $compose ]] || printf 'secrets: Docker Compose %s or newer is needed here, and none is installed\n' "$oldest_compose" >&2
    [[ -z $compose ]] || is_at_least "$compose" "$oldest_compose" ||
        fail "Docker Compose $compose is too old: $oldest_compose or newer is needed" 'Upgrade docker-compose-plugin.'
    engine=$(docker version --format '{{.Server.Version}}' 2>/dev/null) || true
    [[ -z $engine ]] || is_at_least "$engine" "$oldest_engine" ||
        fail "Docker Engine $engine is too old: $oldest_engine or newer is needed" 'Upgrade docker-ce.'
}

# make <name>: the file, with standard input as its content, unless it exists.
make() {
    if [[ -e $directory/$1 ]]; then
        cat >/dev/null
        return
    fi
    cat >"$directory/$1.new"
    chmod 440 "$directory/$1.new"
    mv -- "$directory/$1.new" "$directory/$1"
    printf 'made %s\n' "$directory/$1" >&2
}

random() {
    od -An -vtx1 -N24 /dev/urandom | tr -d ' \n'
}

# broker_url <host>
broker_url() {
    printf 'redis://:%s@%s:6379/0' "$(<"$directory/redis_password")" "$1"
}

ask_for_password() {
    local password
    [[ ! -t 0 ]] || printf "Password of the database's user: " >&2
    IFS= read -rs password || true
    [[ ! -t 0 ]] || printf '\n' >&2
    [[ -n $password ]] ||
        fail 'no password of the database' 'type one, or: tools/secrets.sh < a-file-that-holds-it'
    printf '%s' "$password"
}

if [[ ${1:-} == --env-file ]]; then
    [[ -r ${2:-} ]] || fail "the env file ${2:-} cannot be read" 'usage: tools/secrets.sh [--env-file FILE] [directory]'
    env_file=$2
    shift 2
fi
directory=${1:-$(setting KEKKAI_SECRETS secrets)}
[[ -n ${1:-} || $directory == /* ]] || directory=$root/$directory

check_docker
mkdir -p -- "$directory"
if [[ ! -e $directory/database_password ]]; then
    password=$(ask_for_password)
    printf '%s' "$password" | make database_password
fi
random | make redis_password
# Earlier releases called the queue `redis`, a name that the portal's network may have too.
if [[ -e $directory/broker_url && $(<"$directory/broker_url") == "$(broker_url redis)" ]]; then
    printf 'replacing %s: the queue has a name of its own now\n' "$directory/broker_url" >&2
    rm -f -- "$directory/broker_url"
fi
broker_url kekkai-backup-queue | make broker_url
random | make flower_password
make credential_key </dev/null
make replication_url </dev/null
make notify_urls </dev/null
make ping_url </dev/null

# Compose mounts the files as they are: the containers' user has to be their owner.
owner=$(setting KEKKAI_UID 10001):$(setting KEKKAI_GID 10001)
if ((EUID == 0)); then
    chown -- "$owner" "$directory"/*
elif [[ $owner != "$EUID:"* ]]; then
    printf "secrets: the containers' user cannot read them yet; run: sudo chown %s %s/*\n" "$owner" "$directory" >&2
fi
