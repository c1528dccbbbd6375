#!/usr/bin/env bash
# Chromium for the tests of the dashboard, from Debian's packages: installed if that is possible here.
set -u
command -v chromium >/dev/null || command -v chromium-browser >/dev/null && exit 0
if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    echo "Installing Chromium for the tests (apt-get)"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
        --no-install-recommends chromium fonts-dejavu-core >/dev/null && exit 0
fi
echo "The dashboard's tests in a browser will be SKIPPED: chromium is not installed and cannot be" \
    "(root and apt-get)" >&2
