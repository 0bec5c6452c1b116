#!/usr/bin/env bash
# Installs the backup of a portal on this machine: user, directories, settings
# file, systemd units. It shows a plan and asks before it writes.
#
#   sudo tools/install.sh              shows the plan, asks, installs
#   sudo tools/install.sh --dry-run    shows the plan, changes nothing
#   sudo tools/install.sh --uninstall  removes what it made; archives stay
#
# options:
#   --from DIR          the directory of the portal's compose file
#   --set NAME=VALUE    a setting; can be repeated
#   --units service     worker, beat and watcher instead of timers; needs a
#                       queue: --set CELERY_BROKER_URL=redis://localhost:6379/5
#   --yes               does not ask
#   --root DIR          installs into another root file system
set -euo pipefail

self=$(readlink -f -- "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=setup.sh
source "${self%/*}/setup.sh"

case " $* " in
    *' --help '* | *' -h '*)
        sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' -- "$self"
        exit 0
        ;;
esac
find_python
# The environment does not exist yet, so the installer uses nothing but Python itself.
exec "$python" -I -c 'import sys; sys.path.insert(0, sys.argv.pop(1)); from tools.installer.main import main; sys.exit(main())' \
    "$root" "$@"
