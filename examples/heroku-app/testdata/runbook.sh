#!/usr/bin/env bash
# A run-book as a team wrote it for the tool before this one: MIGRATOR_APP is the app's address, MIGRATOR_PASSWORD what was set as PASSWORD.
# It knows /status, the POSTs and their answers from that tool's documentation, and nothing else.
set -euo pipefail

say() { echo "[$(date +%H:%M:%S)] $*"; }
get() { curl -fsS -u "admin:$MIGRATOR_PASSWORD" "$MIGRATOR_APP$1"; }
field() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" | head -n 1; }
phase() { get /status | grep -o '"phase":"[a-z_]*"' | head -n 1 | cut -d'"' -f4; }

wait_for() {
  local want=$1 now= tries=0
  until now=$(phase); [ "$now" = "$want" ]; do
    case $now in
      error | aborted) say "phase $now while waiting for $want"; get /status; exit 1 ;;
    esac
    tries=$((tries + 1))
    [ $tries -lt 1200 ] || { say "gave up waiting for $want in phase $now"; exit 1; }
    sleep 0.25
  done
  say "phase: $want"
}

# Posts, and prints the status code. The body is left in $body.
post() {
  body=$(curl -sS -u "admin:$MIGRATOR_PASSWORD" -X POST -w '\n%{http_code}' "$MIGRATOR_APP$1")
  code=${body##*$'\n'}
  body=${body%$'\n'*}
}
must() {
  post "$1"
  [ "$code" = 200 ] && grep -q '"success":true' <<<"$body" || { say "POST $1: $code $body"; exit 1; }
  say "POST $1: done"
}

curl -fsS "$MIGRATOR_APP/health" >/dev/null && say "the app is up"
[ "$(curl -s -o /dev/null -w '%{http_code}' "$MIGRATOR_APP/status")" = 401 ] && say "and it asks for a password"
get /preflight-checks >/dev/null && say "preflight was run"
get "/logs?lines=20" >/dev/null

post /switch-traffic # too early: a refusal has a code, and the readiness
[ "$code" = 409 ] && grep -q '"success":false' <<<"$body" && grep -q '"code":"' <<<"$body" || { say "early switch: $code $body"; exit 1; }

must /start-migration
wait_for ready_to_copy
must /start-copy
wait_for replicating

must /pause-sync
get /status | grep -q '"state":"paused"'
must /resume-sync
must /verify
get /verify-output | grep -q '"output"'

for _ in $(seq 1 240); do
  level=$(get /status | grep -o '"level":"[a-z_]*"' | head -n 1 | cut -d'"' -f4)
  [ "$level" = ready ] && break
  sleep 0.25
done
say "cutover readiness: $level"
must /switch-traffic
wait_for switched
must /revert-switch
wait_for replicating
must "/switch-traffic?force=1"
wait_for switched
must /cleanup
wait_for completed
say "migration finished at $(get /status | field completed_at)"
