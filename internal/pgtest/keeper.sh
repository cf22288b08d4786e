# Runs one Postgres server for as long as standard input stays open, be it as
# the entry process of a container or as a plain child process.
#
#   bash -c SCRIPT keeper BIN_DIR DATA_DIR POSTGRES_ARGUMENTS...
#
# The first line of standard input is the superuser's password; the second names
# the host and port of a primary, if this is to be its standby. Standard input
# ends when the process that started this one exits, however it exits: the
# kernel closes its end. Then the server is stopped and its data removed.
set -eu
bin=$1 data=$2
shift 2

as=()
if [ "$(id -u)" = 0 ]; then # postgres refuses to run as root
  chown postgres "$data"
  if [ -d /small ]; then chown postgres /small; fi
  as=(setpriv --reuid=postgres --regid=postgres --init-groups --)
fi

server=
reader=
finish() {
  trap '' TERM INT HUP
  [ -z "$reader" ] || kill "$reader" 2>/dev/null || :
  [ -z "$server" ] || kill -QUIT "$server" 2>/dev/null || :
  wait || :
  rm -rf "$data" 2>/dev/null || : # inside a container the mount point itself stays
}
trap finish EXIT
trap 'exit 143' TERM INT HUP

exec 3<&0 </dev/null
IFS= read -r -t 30 password <&3
IFS= read -r -t 30 primary <&3
cd "$data"
umask 077
if [ -n "$primary" ]; then
  PGPASSWORD=$password "${as[@]}" "$bin/pg_basebackup" -D "$data/db" -h "${primary% *}" -p "${primary#* }" -U postgres \
    -X stream -c fast -R --no-sync
else
"${as[@]}" bash -c 'cat >password' <<<"$password"
"${as[@]}" "$bin/initdb" -D "$data/db" -U postgres --pwfile="$data/password" --auth=scram-sha-256 \
  -E UTF8 --locale=C.UTF-8 --no-sync --no-instructions >/dev/null
rm "$data/password"
printf 'host all all all scram-sha-256\nhost replication all all scram-sha-256\n' >>"$data/db/pg_hba.conf"
fi

"${as[@]}" "$bin/postgres" -D "$data/db" -c unix_socket_directories= "$@" 3<&- &
server=$!
cat <&3 >/dev/null &
reader=$!
wait -n || : # whichever ends first
