#!/usr/bin/env bash
# SLURM and shellcheck for the tests, from Debian's packages: installed if that is possible here.
set -u
PATH=$PATH:/usr/sbin:/sbin
for program in slurmctld slurmd sbatch munged shellcheck; do
    command -v "$program" >/dev/null || missing=$program
done
[[ -n ${missing:-} ]] || exit 0
if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    echo "Installing SLURM for the tests (apt-get)"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
        --no-install-recommends slurmctld slurmd slurm-client munge shellcheck >/dev/null && exit 0
fi
echo "SLURM's tests will be SKIPPED: $missing is not installed and cannot be (root and apt-get)" >&2
