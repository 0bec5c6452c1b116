#!/usr/bin/env bash
# Checks everything and stops at the first failure; arguments go to pytest.
#
#   tools/test.sh --containers [option...]    the compose files on a real engine instead; tests/containers/smoke says how
#   tools/test.sh --speed [option...]         speed and size against the last release instead; takes some minutes alone
set -euo pipefail

self=$(readlink -f -- "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=setup.sh
source "${self%/*}/setup.sh"
prepare_environment demo dev

# check <what it is called> <command> [argument...]: runs one check of the environment under a header of its own.
check() {
    local name=$1 status=0
    shift
    printf '\n== %s\n' "$name"
    "$venv/bin/$1" "${@:2}" || status=$?
    ((status == 0)) || printf '\n%s failed (exit code %d)\n' "$name" "$status" >&2
    return "$status"
}

cd -- "$root"
if [[ ${1:-} == --containers ]]; then
    check 'containers' pytest -n 0 --verbose --override-ini 'python_files=check_*.py' tests/containers/smoke "${@:2}"
    exit
fi
if [[ ${1:-} == --speed ]]; then
    check 'speed' python -I -m benchmarks.guard "${@:2}"
    exit
fi
check 'format' ruff format --check
check 'lint' ruff check
check 'types' mypy
check 'imports' lint-imports --no-cache
check 'shell' shellcheck tools/*.sh .ci/run
check 'tests' pytest "$@"
