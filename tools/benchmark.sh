#!/usr/bin/env bash
# Measures this project beside tar, restic, borg and pg_dump; `benchmark.sh --help` says how.
set -euo pipefail

self=$(readlink -f -- "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=setup.sh
source "${self%/*}/setup.sh"
prepare_environment demo
exec "$venv/bin/python" -I -m tools.benchmark "$@"
