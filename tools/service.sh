#!/usr/bin/env bash
# Runs one part of the service in the foreground, for systemd or a terminal.
#
#   service.sh worker [QUEUE...]   runs tasks; the queues are backup, restore,
#                                  maintenance and offsite (default: all)
#   service.sh beat                sends scheduled tasks, makes up for missed ones
#   service.sh watcher             requests a backup of uploads within seconds
#   service.sh wal                 receives WAL, for recovery to any second
#   service.sh flower              shows the tasks in a browser
#
#   service.sh health [QUEUE...]   checks the workers: exit code 0 or 1
#   service.sh beat --health       the same for beat; also watcher and wal
#   service.sh keys [rotate]       shows the keys that tasks are signed with;
#                                  rotate signs with a new one from now on
#
# Settings come from the environment and from the settings file
# (docs/settings.md). SIGTERM ends each of these in good order.
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
    '')
        sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' -- "$self" >&2
        exit 2
        ;;
    *)
        echo 'usage: tools/service.sh worker|beat|watcher|wal|flower|health|keys [OPTION...]; see --help' >&2
        exit 2
        ;;
esac
# shellcheck disable=SC2119  # it takes extras, not the arguments of this script
prepare_environment
exec "$venv/bin/python" -I -m "$module" "${@:2}"
