#!/usr/bin/env bash
# shellcheck shell=bash disable=SC2034,SC2154  # settings of cluster.sh; `words`
# What the scripts share. Sourced by torchrun.sh, submit.sh and slurm.sbatch, after cluster.sh.

preflight() { # [--elsewhere] OVERRIDES...: the run's folder and its launch's number, or 2
    "$PYTHON" -m cola_train.commands.preflight --nodes "$NODES" --gpus-per-node "$GPUS_PER_NODE" \
        --processes-per-node "$PROCESSES_PER_NODE" "$@"
}

split_line() { # a sweep's line, by quotes and blanks, into the array `words`
    local split
    split=$(xargs -n1 printf '%s\n' <<<"$1") || {
        echo "error: a sweep's line cannot be split into overrides: $1" >&2
        exit 2
    }
    mapfile -t words <<<"$split"
}
