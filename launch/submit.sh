#!/usr/bin/env bash
# Check a run, then submit it to SLURM with what cluster.sh says.
#   launch/submit.sh [--dry-run] [--sweep FILE [--at-once N]] [OVERRIDES...]
# --dry-run   check, show the whole command, submit nothing
# --sweep     a job array: one run for each line of FILE, which holds its overrides
# --at-once   how many of them may run at the same time
# Settings are in launch/cluster.sh; launch/README.md says what each is.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/cluster.sh
source launch/cluster.sh
# shellcheck source=launch/common.sh
source launch/common.sh

dry_run=false sweep='' at_once='' overrides=()
while (($# > 0)); do
    case "$1" in
        -h | --help) usage launch/submit.sh && exit ;;
        --dry-run) dry_run=true ;;
        --sweep)
            sweep=${2:-}
            [[ -f $sweep && -r $sweep ]] || fail "--sweep: cannot read '$sweep'"
            shift
            ;;
        --at-once)
            at_once=${2:-}
            [[ $at_once =~ ^[1-9][0-9]*$ ]] || fail "--at-once: a number is expected: '$at_once'"
            shift
            ;;
        -*) fail "$1: no such option; --help shows them" ;;
        *) overrides+=("$1") ;;
    esac
    shift
done
[[ -z $at_once || -n $sweep ]] || fail "--at-once: of a --sweep, and there is none"

# Before the job waits in a queue: the environment, the config, the disk ...
checked_folder() {
    preflight --elsewhere -- "$@" | sed -n 1p
}
export NODES GPUS_PER_NODE PROCESSES_PER_NODE CPUS_PER_PROCESS RESTARTS MAX_REQUEUES PYTHON
job=(--nodes="$NODES" --ntasks-per-node="$PROCESSES_PER_NODE" --cpus-per-task="$CPUS_PER_PROCESS"
    --time="$TIME" --signal=USR1@"$STOP_SECONDS" --chdir="$PWD")
((GPUS_PER_NODE > 0)) && job+=(--gres=gpu:"$GPUS_PER_NODE")
[[ -n $PARTITION ]] && job+=(--partition="$PARTITION")
[[ -n $ACCOUNT ]] && job+=(--account="$ACCOUNT")
[[ -n $QOS ]] && job+=(--qos="$QOS")
[[ -n $MEMORY ]] && job+=(--mem="$MEMORY")
read -ra more <<<"$SBATCH_ARGUMENTS"
job+=("${more[@]}")

if [[ -n $sweep ]]; then
    folders=()
    while read -r line || [[ -n $line ]]; do # the last may lack its newline
        [[ -n $line ]] || fail "--sweep: $sweep has an empty line; each is a run's overrides"
        split_line "$line"
        folder=$(checked_folder "${overrides[@]}" "${words[@]}")
        folders+=("$folder")
    done <"$sweep"
    same=$(printf '%s\n' "${folders[@]}" | sort | uniq -d)
    [[ -z $same ]] || fail "--sweep: several lines use $same; give each a run_name"
    logs=$(realpath -m "$SWEEP_LOGS")/$(date +%F_%H-%M-%S)
    job+=(--job-name="$(basename "$sweep")" --array="1-${#folders[@]}${at_once:+%$at_once}"
        --output="$logs/%a.log")
    export SWEEP_FILE=$logs/overrides.txt # a copy: a requeued run reads it again
else
    run_dir=$(checked_folder "${overrides[@]}")
    logs=$run_dir/logs
    job+=(--job-name="$(basename "$run_dir")" --output="$logs/slurm.log")
fi

# ... and whether the cluster has such nodes, GPUs, partition, account and time.
sbatch --test-only "${job[@]}" launch/slurm.sbatch "${overrides[@]}" ||
    fail "SLURM would refuse this job; see launch/cluster.sh"
if $dry_run; then
    printf '%q ' sbatch "${job[@]}" launch/slurm.sbatch "${overrides[@]}"
    echo
    exit 0
fi
mkdir -p "$logs"
[[ -z $sweep ]] || cp "$sweep" "$SWEEP_FILE"
sbatch --parsable "${job[@]}" launch/slurm.sbatch "${overrides[@]}"
