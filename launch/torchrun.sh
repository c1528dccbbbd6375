#!/usr/bin/env bash
# A run under torchrun, on this machine, or on several: start it on each.
#   launch/torchrun.sh [--dry-run] [OVERRIDES...]
# --dry-run   check, show the whole command, start nothing
# Exits with the trainer's own code (torchrun's is 1 for every fault): 0, 2, 75 or 1.
# Settings are in launch/cluster.sh; launch/README.md says what each is.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/cluster.sh
source launch/cluster.sh
# shellcheck source=launch/common.sh
source launch/common.sh

dry_run=false overrides=()
for word in "$@"; do
    case "$word" in
        -h | --help) usage launch/torchrun.sh && exit ;;
        --dry-run) dry_run=true ;;
        -*) fail "$word: no such option; --help shows them" ;;
        *) overrides+=("$word") ;;
    esac
done

setup_environment
checked=$(preflight -- "${overrides[@]}")
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
# torchrun starts a mistake or a divergence again, too; there is no more to do for it then.
# shellcheck disable=SC2016  # a worker's shell expands these
worker='[[ $("$1" -m cola_train.run.status "$2" "$COLA_LAUNCH") == failed* ]] && exit 0
        exec "$1" -m cola_train "${@:3}"'
command=("$PYTHON" -m torch.distributed.run "${rendezvous[@]}"
    --nproc-per-node "$PROCESSES_PER_NODE" --max-restarts "$RESTARTS" --monitor-interval 1
    --signals-to-handle "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    --log-dir "$run_dir/logs" --tee 3
    --no-python -- bash -c "$worker" worker "$PYTHON" "$run_dir" "${overrides[@]}")
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
    trap "kill -$signal $torchrun 2>/dev/null || true" "$signal"
done
while kill -0 "$torchrun" 2>/dev/null; do # a signal ends `wait`, not torchrun
    wait "$torchrun" || true
done
verdict
echo "$run_dir: $state, exit code $said$message" >&2
exit "$said"
