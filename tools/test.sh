#!/usr/bin/env bash
# Checks everything and stops at the first failure; arguments go to pytest.
#
#   tools/test.sh --containers [option...]    the compose files on a real engine instead; tests/containers/smoke says how
#   tools/test.sh --mutations [option...]     does a test notice when the code is changed? tests/mutations says how
#   tools/test.sh --long [seed]               the tests of kills, crashes and races alone, with many more rounds
#                                             (at most KEKKAI_LONG_ROUNDS each), and those of drawn examples with new ones
#   tools/test.sh --soak [minutes] [seed]     the whole service, while something is killed, frozen, cut off or filled
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

# mutate [option...]: mutates the code and runs its tests; the program that does so gets an environment of its own.
mutate() {
    local place=$venv/mutations
    if [[ ! -x $place/bin/cosmic-ray ]]; then
        "$venv/bin/python" -m venv --clear "$place"
        "$place/bin/python" -m pip install --quiet --disable-pip-version-check "cosmic-ray==8.7.0"
    fi
    PYTHONPATH=$root "$place/bin/python" -m tests.mutations.run "$@"
}

cd -- "$root"
if [[ ${1:-} == --mutations ]]; then
    mutate "${@:2}"
    exit
fi
if [[ ${1:-} == --long ]]; then
    export KEKKAI_LONG_TESTS=1 KEKKAI_TEST_SEED=${2:-$RANDOM}
    printf 'seed %s\n' "$KEKKAI_TEST_SEED"
    mapfile -t files < <(grep -lE 'if LONG|rounds\(|LONG_TESTS|^from hypothesis' -r tests --include='test_*.py')
    check 'long' pytest --durations=0 --override-ini faulthandler_timeout=0 "${files[@]}"
    exit
fi
if [[ ${1:-} == --soak ]]; then
    "$venv/bin/python" -m tests.soak "${@:2}"
    exit
fi
if [[ ${1:-} == --containers ]]; then
    check 'containers' pytest -n 0 --verbose --override-ini faulthandler_timeout=0 \
        --override-ini 'python_files=check_*.py' tests/containers/smoke "${@:2}"
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
