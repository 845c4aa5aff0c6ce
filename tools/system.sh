#!/usr/bin/env bash
# System parts: the hard-limit sandbox, Golem's image format, and what builds and tests use. Installed when we are root on Debian; otherwise
# named in one sentence. The sandbox itself (bwrap, from the Python packages) needs none of them.
set -euo pipefail

# command → Debian package
declare -A wanted=([runc]=runc [mkfs.ext4]=e2fsprogs [busybox]=busybox-static [sqfs2tar]=squashfs-tools-ng)
missing=()
for tool in "${!wanted[@]}"; do
  command -v "$tool" >/dev/null || [ -x "/usr/sbin/$tool" ] || [ -x "/sbin/$tool" ] || missing+=("${wanted[$tool]}")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing ${missing[*]} …" >&2
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>&1 \
    || { echo "apt-get could not install ${missing[*]}" >&2; exit 1; }
else
  echo "Without root these are missing; hard limits and some tests need them: apt-get install ${missing[*]}" >&2
fi
