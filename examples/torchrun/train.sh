#!/usr/bin/env bash
# The trainers of one node under torchrun's own rendezvous: bash train.sh NODE train.py ...
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/job.env"
node=$1
shift

IFS=, read -ra addresses <<<"$CKPTD_NODES"
[[ -S $CKPTD_RUN_DIR/ckptd.sock ]] || { echo "no daemon runs here: start serve.sh $node first" >&2; exit 1; }
export CKPTD_NODE=$node    # should the daemon die, a trainer starts it again, as this node

# Each round needs a store of its own, or restarts with gloo fail in torch 2.13.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# last_call_timeout, keep_alive_*: a lost node is noticed after 5 seconds instead of 15 to 45.
exec torchrun --nnodes "${#addresses[@]}" --nproc-per-node "$RANKS_PER_NODE" --max-restarts 100 \
    --rdzv-id "$CKPTD_JOB" --rdzv-backend c10d --rdzv-endpoint "$RENDEZVOUS" --local-addr "${addresses[node]%:*}" \
    --rdzv-conf is_host=0,join_timeout=600,last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3 \
    "$@"
