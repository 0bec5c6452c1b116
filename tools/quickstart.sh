#!/usr/bin/env bash
# Shows the whole of it on a portal made up for the purpose: back up, check, restore somewhere else, compare.
set -euo pipefail

self=$(readlink -f -- "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=setup.sh
source "${self%/*}/setup.sh"
prepare_environment demo
exec "$venv/bin/python" -I -m demo.quickstart "$@"
