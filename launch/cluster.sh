#!/usr/bin/env bash
# shellcheck shell=bash
# The one place to edit. Each setting can also be given for one launch, in the environment:
#   NODES=2 launch/submit.sh model=1b
# launch/README.md says what each is. Sourced by torchrun.sh, submit.sh and slurm.sbatch.

# What a run gets.
: "${NODES:=1}"
: "${GPUS_PER_NODE:=8}"                 # 0: a run on CPUs
: "${PROCESSES_PER_NODE:=$((GPUS_PER_NODE > 0 ? GPUS_PER_NODE : 1))}"
: "${CPUS_PER_PROCESS:=8}"
: "${RESTARTS:=3}"                      # in place, after a process died
: "${STOP_SECONDS:=180}"                # to save and end, once told to

# SLURM's part. Empty: the cluster's default.
: "${PARTITION:=}"
: "${ACCOUNT:=}"
: "${QOS:=}"
: "${TIME:=24:00:00}"
: "${MEMORY:=}"                         # of a node, like 500G; 0 is all of it
: "${MAX_REQUEUES:=100}"
: "${SWEEP_LOGS:=outputs/sweeps}"      # where a sweep keeps its lines and logs
: "${SBATCH_ARGUMENTS:=}"               # anything else: --constraint=h100 --exclude=node7

# torchrun's part, for several nodes.
: "${HEAD:=localhost:29400}"            # host:port of one of them
: "${RUN_ID:=cola}"                     # the same on all nodes

# The software.
: "${PYTHON:=.venv/bin/python}"         # from the repository's root, or absolute
setup_environment() {                   # in the job, on its first node: modules and variables
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$CPUS_PER_PROCESS}"
    # module load cuda
    # export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0 WANDB_API_KEY=...
}
