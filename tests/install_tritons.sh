#!/usr/bin/env bash
# The older versions of Triton that the kernels are tested with, each in a folder of its own beside
# the environment's packages: tests/install_tritons.sh .venv/bin/python
set -euo pipefail
python=${1:-python3}
folder=${COLA_TRITONS:-$("$python" -c 'import sys; print(sys.prefix)')/tritons}
mkdir -p "$folder"
for version in 3.6.0 3.7.1; do
    [[ -d $folder/$version ]] && continue
    echo "Installing Triton $version for the tests into $folder"
    part=$(mktemp -d "$folder/part.XXXXXX")
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps \
        --target "$part" "triton==$version"
    mv "$part" "$folder/$version"
done
