#!/usr/bin/env bash
# Install Golem's own clients and its daemon, unmodified, and a chain's real node (anvil), each into an environment of its
# own below .interop/.
# What cannot be installed here is named, and the tests that need it say that they were skipped.
set -uo pipefail
cd "$(dirname "$0")/.."
mkdir -p .interop
for program in yapapi golem-core golem-node; do
  wanted=requirements/interop-$program.txt place=.interop/$program
  cmp -s "$wanted" "$place/.ready" && continue
  rm -rf "$place"
  if .venv/bin/uv venv -q --python .venv/bin/python "$place" && .venv/bin/uv pip sync -q --compile-bytecode --python "$place/bin/python" "$wanted"; then
    cp "$wanted" "$place/.ready"
  else
    echo "$program could not be installed: what needs it is skipped" >&2
  fi
done

if ! command -v npm >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing nodejs, npm …" >&2
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nodejs npm >/dev/null 2>&1
fi
# What npm installs from a lock: $1 is its place below .interop, $2 the lock's below tests/interop.
from_npm() {
  local place=.interop/$1 lock=tests/interop/$2/package-lock.json
  if ! command -v npm >/dev/null; then
    echo "npm is missing: what needs $1 is skipped" >&2
  elif ! cmp -s "$lock" "$place/.ready"; then
    rm -rf "$place" && mkdir -p "$place"
    cp "tests/interop/$2/package.json" "$lock" "$place/"
    if (cd "$place" && npm ci --ignore-scripts --no-audit --no-fund --loglevel error); then
      cp "$lock" "$place/.ready"
    else
      echo "$1 could not be installed: what needs it is skipped" >&2
    fi
  fi
}
from_npm golem-js golem_js

# A chain's real node: a program that brings nothing with it but its wish for a C library not too old.
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d" " -f2)
if [ "$(uname -sm)" != "Linux x86_64" ]; then
  echo "anvil is made for Linux on x86_64 alone: what needs it is skipped" >&2
elif [ "$(printf '%s\n' 2.35 "${glibc:-0}" | sort -V | head -n 1)" != 2.35 ]; then
  echo "anvil needs glibc 2.35, here is ${glibc:-none}: what needs it is skipped" >&2
else
  from_npm anvil anvil
fi
exit 0
