#!/usr/bin/env bash
# Runs a part of the service, in the foreground: what systemd or a person at a terminal starts.
#
#   tools/service.sh worker [queue...]    does what backup.sh, restore.sh, beat and the watcher hand over
#   tools/service.sh beat                holds the schedules, and catches up with what was missed
#   tools/service.sh watcher             has uploads backed up within seconds
#   tools/service.sh wal                 receives the database's WAL, for recoveries to any second
#   tools/service.sh flower              shows the tasks in a browser
#   tools/service.sh health [queue...]    is the worker well? exit code 0 or 1; beat, watcher and wal take --health
#   tools/service.sh keys [rotate]        the keys that tasks are signed with; rotate signs with a new one from now on
set -euo pipefail

self=$(readlink -f -- "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=setup.sh
source "${self%/*}/setup.sh"

case ${1-} in
    worker | beat) module=$1 ;;
    watcher) module=beat.watcher ;;
    wal) module=beat.wal ;;
    flower | health | keys) module=worker.$1 ;;
    -h | --help)
        sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' -- "$self"
        exit 0
        ;;
    *)
        echo 'usage: tools/service.sh worker|beat|watcher|wal|flower|health|keys [option...]; --help says what each is' >&2
        exit 2
        ;;
esac
# shellcheck disable=SC2119  # it takes extras, not the arguments of this script
prepare_environment
exec "$venv/bin/python" -I -m "$module" "${@:2}"
