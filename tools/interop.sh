#!/usr/bin/env bash
# Install Golem's own clients and its daemon, unmodified, each into an environment of its own below .interop/.
# What cannot be installed here is named, and the tests that need it say that they were skipped.
set -uo pipefail
cd "$(dirname "$0")/.."
mkdir -p .interop
for program in yapapi golem-core golem-node; do
  wanted=requirements/interop-$program.txt place=.interop/$program
  cmp -s "$wanted" "$place/.ready" && continue
  rm -rf "$place"
  if .venv/bin/uv venv -q --python .venv/bin/python "$place" && .venv/bin/uv pip sync -q --python "$place/bin/python" "$wanted"; then
    cp "$wanted" "$place/.ready"
  else
    echo "$program could not be installed: what needs it is skipped" >&2
  fi
done

if ! command -v npm >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing nodejs, npm …" >&2
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nodejs npm >/dev/null 2>&1
fi
lock=tests/interop/golem_js/package-lock.json place=.interop/golem-js
if ! command -v npm >/dev/null; then
  echo "npm is missing: what needs golem-js is skipped" >&2
elif ! cmp -s "$lock" "$place/.ready"; then
  rm -rf "$place" && mkdir -p "$place"
  cp tests/interop/golem_js/package.json "$lock" "$place/"
  if (cd "$place" && npm ci --ignore-scripts --no-audit --no-fund --loglevel error); then
    cp "$lock" "$place/.ready"
  else
    echo "golem-js could not be installed: what needs it is skipped" >&2
  fi
fi
exit 0
