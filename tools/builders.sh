#!/usr/bin/env bash
# The compilers of what is committed ready-made (contracts, guest agent), locked, in an environment of their own: .build.
# Nothing else needs them.
set -euo pipefail
cd "$(dirname "$0")/.."
wanted=requirements/build.txt
cmp -s "$wanted" .build/.ready && exit 0
rm -rf .build
.venv/bin/uv venv -q --python .venv/bin/python .build
.venv/bin/uv pip sync -q --compile-bytecode --python .build/bin/python "$wanted"
cp "$wanted" .build/.ready
