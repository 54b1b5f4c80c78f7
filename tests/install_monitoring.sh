#!/usr/bin/env bash
# What the tests marked `browser` and `prometheus` need: Chromium, and Prometheus's two programs without its service.
# As root on Debian it installs what is missing from the distribution's packages; elsewhere it says in one line what
# is missing and which tests are left out.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive

has() { command -v "$1" >/dev/null; }
missing() {
  has chromium || has chromium-browser || has google-chrome || echo chromium
  { has prometheus && has promtool; } || echo prometheus
}
install_chromium() { apt-get install --yes --no-install-recommends chromium; }
install_prometheus() (
  cd "$(mktemp -d)"
  apt-get download prometheus && dpkg-deb --extract prometheus_*.deb . && install usr/bin/prom* /usr/local/bin
  rm -r "$PWD"
)

if [ -n "$(missing)" ] && [ "$(id -u)" -eq 0 ] && has apt-get; then
  apt-get update >/dev/null || true
  for name in $(missing); do "install_$name" >/dev/null || true; done
fi
left=$(missing)
if [ -n "$left" ]; then
  echo "left out: tests of monitoring (pytest -m 'browser or prometheus'), they need ${left//$'\n'/, } as root on Debian"
fi
