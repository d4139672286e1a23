#!/usr/bin/env bash
# The daemon of one node, in the foreground: bash serve.sh NODE
#
# It outlives the trainers, so it runs by itself: as a service of the machine, or in a terminal of its own.
# At Ctrl-C or SIGTERM it gives its memory back; killed in another way it leaves the snapshots to the next one.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/job.env"

exec ckptd serve --node "$1" --clean-exit
