#!/usr/bin/env bash
# Resolve the dependencies anew into files with hashes and without addresses: whichever index the machine uses will do.
set -euo pipefail
cd "$(dirname "$0")/.."
options=(--quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate)
.venv/bin/uv pip compile "${options[@]}" --extra devnet --group test --group check pyproject.toml -o requirements/dev.txt
echo uv | .venv/bin/uv pip compile "${options[@]}" - -o requirements/uv.txt
