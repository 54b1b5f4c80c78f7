#!/usr/bin/env bash
# What the tests marked `slurm` need: Slurm, munge and shellcheck from the distribution's packages. As root on
# Debian it installs what is missing; elsewhere it says in one line what is missing and which tests are left out.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
missing=()
for pair in slurmctld:slurm-wlm munged:munge setpriv:util-linux shellcheck:shellcheck; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if [ "${#missing[@]}" -eq 0 ] && [ "$(id -u)" -eq 0 ]; then
  exit 0
fi
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  if { apt-get update && apt-get install --yes --no-install-recommends "${missing[@]}"; } >/dev/null; then
    exit 0
  fi
fi
reason=${missing[*]:-root}
echo "left out: the tests on a real Slurm (pytest -m slurm), they need ${reason// /, }${missing[*]:+ as root on Debian}"
