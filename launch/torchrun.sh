#!/usr/bin/env bash
# A run under torchrun, on this machine, or on several: start it on each.
#   launch/torchrun.sh [--dry-run] [OVERRIDES...]
# Exits with the trainer's own code (torchrun's is 1 for every fault): 0, 2, 75 or 1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/cluster.sh
source launch/cluster.sh
# shellcheck source=launch/common.sh
source launch/common.sh

dry_run=false
if [[ "${1:-}" == --dry-run ]]; then
    dry_run=true
    shift
fi

setup_environment
checked=$(preflight "$@")
{ read -r run_dir && read -r COLA_LAUNCH; } <<<"$checked"
export COLA_LAUNCH
# Without it a restart now and then hangs in gloo's rendezvous.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# From the signal to torchrun's SIGKILL; torch 2.11 does not read it and waits 30 s.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="$STOP_SECONDS"

if ((NODES > 1)); then
    rendezvous=(--nnodes "$NODES" --rdzv-backend c10d --rdzv-endpoint "$HEAD" --rdzv-id "$RUN_ID")
else
    rendezvous=(--standalone)
fi
command=("$PYTHON" -m torch.distributed.run "${rendezvous[@]}"
    --nproc-per-node "$PROCESSES_PER_NODE" --max-restarts "$RESTARTS" --monitor-interval 1
    --signals-to-handle "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    --log-dir "$run_dir/logs" --tee 3 -m cola_train "$@")
if $dry_run; then
    printf '%q ' "${command[@]}"
    echo
    exit 0
fi

mkdir -p "$run_dir/logs"
"${command[@]}" &
torchrun=$!
for signal in TERM INT USR1; do
    # shellcheck disable=SC2064  # the process is known now
    trap "kill -$signal $torchrun 2>/dev/null" "$signal"
done
code=0
while kill -0 "$torchrun" 2>/dev/null; do # a signal ends `wait`, not torchrun
    wait "$torchrun" && code=0 || code=$?
done
state=$("$PYTHON" -m cola_train.run.status "$run_dir" "$COLA_LAUNCH") && code=0 || code=$?
echo "$run_dir: $state, exit code $code" >&2
exit "$code"
