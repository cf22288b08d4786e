#!/usr/bin/env bash
# Moves a database as run-books for the tool before this one do: MIGRATOR is where it answers, PASSWORD lets in.
set -euo pipefail

call() { curl -sS --fail-with-body -u "admin:$PASSWORD" "$@"; }
phase() { call "$MIGRATOR/status" | grep -o '"phase":"[a-z_]*"' | head -n 1 | cut -d '"' -f 4; }
await() {
	for _ in $(seq 1 600); do
		now=$(phase)
		[ "$now" = "$1" ] && echo "phase $now" && return
		[ "$now" = error ] && call "$MIGRATOR/status" && exit 1
		sleep 0.2
	done
	echo "phase $now instead of $1" && exit 1
}
post() { call -X POST "$MIGRATOR/$1" | grep -q '"success":true' && echo "$1: done"; }

curl -sS --fail "$MIGRATOR/health" | grep -q ok
call "$MIGRATOR/preflight-checks" | grep -q '"ok":true'
post start-migration
await ready_to_copy
post start-copy
await replicating
post pause-sync
post resume-sync
post verify
post switch-traffic
await switched
post revert-switch
await replicating
post 'switch-traffic?force=1'
await switched
post cleanup
await completed
call "$MIGRATOR/logs?lines=5" | grep -q '"logs":'
