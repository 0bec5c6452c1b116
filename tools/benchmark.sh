#!/usr/bin/env bash
# Measures this project beside tar, restic, borg and pg_dump; `benchmark.sh --help` says how.
#
# `benchmark.sh many-archives`, `uploads`, `pitr` and `chained-fulls` measure what has no peer: a repository of very many
# archives, how soon an upload is backed up in a very large tree, recoveries to a second, and full backups that follow
# another.
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
