#!/usr/bin/env bash
# shellcheck shell=bash disable=SC2034,SC2154  # settings of cluster.sh; what the scripts read
# What the scripts share. Sourced by torchrun.sh, submit.sh and slurm.sbatch, after cluster.sh.

fail() { # MESSAGE: of a mistake
    printf 'error: %s\n' "$1" >&2
    exit 2
}

usage() { # SCRIPT: the comment at its head
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$1"
}

preflight() { # [--elsewhere] -- OVERRIDES...: the run's folder and its launch's number, or 2
    "$PYTHON" -m cola_train.commands.preflight --nodes "$NODES" --gpus-per-node "$GPUS_PER_NODE" \
        --processes-per-node "$PROCESSES_PER_NODE" "$@" && return
    "$PYTHON" -c 'import cola_train.commands.preflight' 2>/dev/null ||
        fail "PYTHON: $PYTHON cannot import cola_train; see above, then \`make install\` or set it"
    exit 2
}

verdict() { # sets `state`, `said` (the trainer's exit code) and `message` (on lines of its own)
    local words
    words=$("$PYTHON" -m cola_train.run.status "$run_dir" "$COLA_LAUNCH") && said=0 || said=$?
    state=${words%%$'\n'*} message=${words#"${words%%$'\n'*}"}
}

split_line() { # a sweep's line, by quotes and blanks, into the array `words`
    local split
    split=$(xargs -n1 printf '%s\n' <<<"$1") ||
        fail "a sweep's line cannot be split into overrides: $1"
    mapfile -t words <<<"$split"
}
