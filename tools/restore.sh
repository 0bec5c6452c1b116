#!/usr/bin/env bash
# Restores an archive, or says what a restore would do; see `restore.sh --help`.
set -euo pipefail

self=$(readlink -f -- "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=setup.sh
source "${self%/*}/setup.sh"
# shellcheck disable=SC2119  # it takes extras, not the arguments of this script
prepare_environment
exec "$venv/bin/python" -I -m tools.restore "$@"
