#!/usr/bin/env bash
# Resolve the dependencies anew into files with hashes and without addresses: whichever index the machine uses will do.
set -euo pipefail
cd "$(dirname "$0")/.."
options=(--quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate)
.venv/bin/uv pip compile "${options[@]}" --extra devnet --group test --group check pyproject.toml -o requirements/dev.txt
.venv/bin/uv pip compile "${options[@]}" --group build -o requirements/build.txt
echo uv | .venv/bin/uv pip compile "${options[@]}" - -o requirements/uv.txt
# Golem's Python clients and its daemon, each for an environment of its own: their requirements exclude each other.
# Both clients import pkg_resources (golem-core by its textX), which setuptools has not had since 82, and name no version.
for program in "yapapi==0.13.1 setuptools<81" "golem-core==0.7.8 setuptools<81" golem-node==0.16.0; do
  printf '%s\n' $program | .venv/bin/uv pip compile "${options[@]}" - -o "requirements/interop-${program%%=*}.txt"
done
if command -v npm >/dev/null; then
  (cd tests/interop/golem_js && npm install --package-lock-only --ignore-scripts --no-audit --no-fund --omit-lockfile-registry-resolved --loglevel error)
fi
