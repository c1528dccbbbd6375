#!/usr/bin/env bash
# The versions of Triton that the kernels are tested with, each in a folder of its own beside the
# environment's packages, which have one of them: tests/install_tritons.sh .venv/bin/python
set -euo pipefail
python=${1:-python3}
folder=${COLA_TRITONS:-$("$python" -c 'import sys; print(sys.prefix)')/tritons}
mkdir -p "$folder"
here=$("$python" -c 'import importlib.metadata as m; print(m.version("triton"))' 2>/dev/null || true)
for version in 3.6.0 3.7.1 3.9.0; do
    [[ -d $folder/$version || $version == "$here" ]] && continue
    echo "Installing Triton $version for the tests into $folder"
    part=$(mktemp -d "$folder/part.XXXXXX")
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps \
        --target "$part" "triton==$version"
    mv "$part" "$folder/$version"
done
