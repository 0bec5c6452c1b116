#!/usr/bin/env bash
# Makes a backup; `backup.sh --help` says of what.
set -euo pipefail

self=$(readlink -f -- "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=setup.sh
source "${self%/*}/setup.sh"
# shellcheck disable=SC2119  # it takes extras, not the arguments of this script
prepare_environment
exec "$venv/bin/python" -I -m tools.backup "$@"
