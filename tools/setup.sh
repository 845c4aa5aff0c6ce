#!/usr/bin/env bash
# Make .venv in the checkout with exactly the locked packages. Needs Python 3.11 to 3.13 with pip or venv; brings uv itself.
set -euo pipefail
cd "$(dirname "$0")/.."

python=""
for candidate in python3 python3.13 python3.12 python3.11; do
  if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  echo "Shem needs Python 3.11, 3.12 or 3.13: install it (Debian: apt-get install python3 python3-venv) and run make again." >&2
  exit 1
fi

if [ ! -x .venv/bin/python ]; then
  rm -rf .venv
  if ! said=$("$python" -m venv .venv 2>&1); then
    rm -rf .venv
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      echo "installing python3-venv …" >&2
      apt-get update -qq
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null 2>&1
      "$python" -m venv .venv
    else
      echo "$said" >&2
      echo "Python's venv module does not work here: install it (Debian: apt-get install python3-venv) and run make again." >&2
      exit 1
    fi
  fi
fi
[ -x .venv/bin/uv ] || .venv/bin/python -m pip install -q --disable-pip-version-check -r requirements/uv.txt
.venv/bin/uv pip sync -q --compile-bytecode --python .venv/bin/python --allow-empty-requirements requirements/uv.txt requirements/dev.txt
.venv/bin/uv pip install -q --python .venv/bin/python --no-deps -e .
