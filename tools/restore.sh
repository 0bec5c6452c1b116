#!/usr/bin/env bash
# Restores an archive, or says what a restore would do; see `restore.sh --help`.
set -euo pipefail

self=$(readlink -f -- "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=setup.sh
source "${self%/*}/setup.sh"
# shellcheck disable=SC2119  # it takes extras, not the arguments of this script
prepare_environment
# Frames come and go: without this glibc gives their memory back each time, and the kernel clears it anew.
export MALLOC_TRIM_THRESHOLD_=67108864 MALLOC_MMAP_THRESHOLD_=33554432
exec "$venv/bin/python" -I -m tools.restore "$@"
