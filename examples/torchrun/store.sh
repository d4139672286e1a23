#!/usr/bin/env bash
# torchrun's rendezvous store, on a machine that is none of the nodes, so that any of them may be lost: bash store.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/job.env"

# It ends when its input does. This is a pipe to itself, which never ends, whatever becomes of the terminal.
exec python -m ckptd.integrations.store_host --host "${RENDEZVOUS%:*}" --port "${RENDEZVOUS##*:}" 0<> <(:)
