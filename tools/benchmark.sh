#!/usr/bin/env bash
# Measures this project beside tar, restic, borg and pg_dump; `benchmark.sh --help` says how.
#
# `benchmark.sh many-archives`, `uploads` and `chained-fulls` measure what has no peer: a repository of very many archives,
# how soon an upload is backed up in a very large tree, and full backups that follow another. `benchmark.sh pitr` measures
# recoveries to a second, beside Barman and pgBackRest where they are installed.
set -euo pipefail

self=$(readlink -f -- "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=setup.sh
source "${self%/*}/setup.sh"
module=benchmarks
case ${1-} in
    many-archives | uploads | pitr | chained-fulls | offsite)
        module+=.${1/-/_}
        shift
        ;;
esac
prepare_environment demo
exec "$venv/bin/python" -I -m "$module" "$@"
