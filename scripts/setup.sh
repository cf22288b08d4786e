#!/usr/bin/env bash
# setup.sh
#
# Installs what `make test` and `make demo` need besides Go, and does nothing if
# it is there: a C compiler (for the race detector), curl, pg_dump and pg_restore,
# and Postgres servers to test with. Those run in Docker; where there is no Docker,
# Debian's own server is installed instead. No service is started. Chromium, in which
# the dashboard is tested, and PgBouncer, which a migration has to refuse, are installed if they can be; without them
# those tests are skipped.
#
# It installs on Debian and Ubuntu as root. Elsewhere it names what is missing.
set -euo pipefail

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

have_compiler() { # with its headers
  command -v gcc >/dev/null && echo '#include <stdlib.h>' | gcc -xc -fsyntax-only - 2>/dev/null
}
have_docker() { command -v docker >/dev/null && docker version >/dev/null 2>&1; }
have_client() { # Debian's wrappers in PATH are there without the programs
  { command -v pg_dump && command -v pg_restore && pg_dump --version; } >/dev/null 2>&1
}
have_browser() { command -v chromium || command -v chromium-browser || command -v google-chrome || command -v google-chrome-stable; } >/dev/null
have_pooler() { command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ]; }
have_server() { compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; }

packages=() reasons=()
need() { # reason package...
  reasons+=("$1: ${*:2}")
  packages+=("${@:2}")
}
have_compiler || need "a C compiler, for the race detector" gcc libc6-dev
command -v curl >/dev/null || need "curl, for the test of a run-book in shell" curl
have_client || need "pg_dump and pg_restore" postgresql-client
server=no
if ! have_docker; then
  if ! have_server; then
    say "there is no Docker; Debian's Postgres server will do, in the one version that this release has"
    need "a Postgres server to test with, not started" postgresql
    server=yes
  fi
# It makes images where none can be pulled. The tests get it themselves if it is missing then.
elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v debootstrap >/dev/null; then
  need "a tool to make images for the tests" debootstrap
fi
browser=no
if ! have_browser; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    browser=yes
  else
    say "there is no Chromium: the dashboard's tests in a browser are skipped"
  fi
fi
pooler=no
if ! have_pooler; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    pooler=yes
  else
    say "there is no PgBouncer: the test of poolers is skipped"
  fi
fi
[ ${#packages[@]} -gt 0 ] || [ $browser = yes ] || [ $pooler = yes ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  say "missing, and only root on Debian or Ubuntu can have it installed by this script:"
  for reason in "${reasons[@]}"; do say "  $reason"; done
  die "install it (the names are Debian's) and try again"
fi

export DEBIAN_FRONTEND=noninteractive
log=$(mktemp -t heroku-migrator-setup.XXXXXX)
trap 'rm -f "$log"' EXIT
apt() { apt-get -q -o DPkg::Lock::Timeout=120 "$@" </dev/null >>"$log" 2>&1; }

updated=no
update() {
  updated=yes
  say "apt-get update"
  apt update || { cat "$log" >&2; die "apt-get update failed"; }
}
try() {
  apt install -y --no-install-recommends "$@" && return
  [ $updated = no ] || return
  update # the lists are too old, perhaps
  apt install -y --no-install-recommends "$@"
}
install() {
  try "$@" && return
  tail -n 30 "$log" >&2
  die "installing $* failed"
}

for reason in "${reasons[@]}"; do say "installing $reason"; done
[ ${#packages[@]} -eq 0 ] || compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null || update
if [ $server = yes ]; then
  # Debian's server packages make a cluster and start it, unless told not to.
  install postgresql-common
  conf=/etc/postgresql-common/createcluster.conf
  sed -i -E '/^ *create_main_cluster *=/d' "$conf"
  echo 'create_main_cluster = false' >>"$conf"
fi
[ ${#packages[@]} -eq 0 ] || install "${packages[@]}"
if [ $pooler = yes ]; then
  say "installing PgBouncer, for the test of poolers"
  policy=/usr/sbin/policy-rc.d # keeps its service from being started
  [ -e $policy ] && policy= || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy; }
  { (try pgbouncer) && have_pooler; } || say "it could not be installed: the test of poolers is skipped"
  [ -z "$policy" ] || rm -f "$policy"
fi
if [ $browser = yes ]; then
  say "installing a browser, for the tests of the dashboard: chromium, with a font"
  # Ubuntu has it only as a snap, which needs more than apt.
  { (try chromium fonts-dejavu-core) && have_browser; } || say "it could not be installed: the dashboard's tests in a browser are skipped"
fi
