#!/usr/bin/env bash
# Makes the files below secrets/ that compose.yaml names, and leaves alone what is there.
#
#   tools/secrets.sh [directory]    asks for the database's password on a terminal, or reads it from standard input
set -euo pipefail
umask 077

self=$(readlink -f -- "${BASH_SOURCE[0]}")
root=${self%/*/*}
directory=${1:-$root/secrets}

# setting <name> <default>: what the environment or .env says.
setting() {
    local name=$1 value=${!1:-}
    if [[ -z $value && -r $root/.env ]]; then
        value=$(sed -n "s/^$name=//p" "$root/.env" | tail -n 1)
    fi
    printf '%s' "${value:-$2}"
}

# make <name>: the file, with what comes in, unless it is there.
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

ask_for_password() {
    local password
    [[ ! -t 0 ]] || printf "Password of the database's user: " >&2
    IFS= read -rs password || true
    [[ ! -t 0 ]] || printf '\n' >&2
    if [[ -z $password ]]; then
        printf 'secrets: no password of the database\n' >&2
        printf '  hint: type one, or: tools/secrets.sh < a-file-that-holds-it\n' >&2
        exit 2
    fi
    printf '%s' "$password"
}

mkdir -p -- "$directory"
if [[ ! -e $directory/database_password ]]; then
    password=$(ask_for_password)
    printf '%s' "$password" | make database_password
fi
random | make redis_password
printf 'redis://:%s@redis:6379/0' "$(<"$directory/redis_password")" | make broker_url
random | make flower_password
make notify_urls </dev/null
make ping_url </dev/null

# Compose mounts the files as they are: the containers' user has to be their owner.
owner=$(setting KEKKAI_UID 10001):$(setting KEKKAI_GID 10001)
if ((EUID == 0)); then
    chown -- "$owner" "$directory"/*
elif [[ $owner != "$EUID:"* ]]; then
    printf "secrets: the containers' user cannot read them yet; run: sudo chown %s %s/*\n" "$owner" "$directory" >&2
fi
