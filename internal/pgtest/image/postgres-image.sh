#!/bin/bash
# postgres-image.sh VERSION
#
# Makes the Docker image heroku-migrator-postgres:VERSION out of Debian
# packages, for machines that cannot pull the official postgres image. Does
# nothing if the image is there already. Needs root on Debian or Ubuntu.
#
#   15  Debian bookworm      17  Debian trixie      18  Debian forky
#
# PGTEST_MIRROR chooses the Debian mirror; without it, the machine's own apt
# configuration does.
set -euo pipefail

say() { echo "postgres-image: $*" >&2; }
die() { say "$*"; exit 1; }

version=${1:-}
case $version in
  15) suite=bookworm ;;
  17) suite=trixie ;;
  18) suite=forky ;;
  *) die "no image can be had for Postgres version '$version': only 15, 17 and 18" ;;
esac
image=heroku-migrator-postgres:$version

command -v docker >/dev/null || die "the docker command is missing"
docker image inspect "$image" >/dev/null 2>&1 && { say "$image is there already"; exit 0; }
[ "$(id -u)" = 0 ] || die "$image is missing, and making it needs root"
command -v apt-get >/dev/null || die "$image is missing, and making it needs Debian or Ubuntu"

# One build at a time; whoever waited here finds the image made.
exec 9>/var/lock/heroku-migrator-postgres-image.lock
flock 9
docker image inspect "$image" >/dev/null 2>&1 && { say "$image was made meanwhile"; exit 0; }

install_packages() {
  export DEBIAN_FRONTEND=noninteractive
  ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1 || apt-get -q update >&2
  apt-get -q install -y --no-install-recommends "$@" >&2
}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
needed=()
command -v debootstrap >/dev/null || needed+=(debootstrap)
command -v gpgv >/dev/null || needed+=(gpgv)
[ -e "$keyring" ] || needed+=(debian-archive-keyring)
if [ ${#needed[@]} -gt 0 ]; then
  say "installing ${needed[*]}"
  install_packages "${needed[@]}"
fi

mirror=${PGTEST_MIRROR:-}
if [ -z "$mirror" ]; then # debootstrap has a default of its own if this finds nothing
  mirror=$(apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' |
    sed -n 's/^Debian|Debian|\(http.*\)/\1/p' | head -n 1) || mirror=
fi

# debootstrap knows no release that is newer than itself; all of them are built like sid.
script=
[ -e "/usr/share/debootstrap/scripts/$suite" ] || script=/usr/share/debootstrap/scripts/sid

root=$(mktemp -d -t "postgres-image-$version.XXXXXX")
cleanup() {
  for dir in proc sys dev; do # left mounted if debootstrap was killed
    ! mountpoint -q "$root/$dir" || umount -l "$root/$dir"
  done
  rm -rf --one-file-system "$root"
}
trap cleanup EXIT
trap 'exit 1' TERM INT HUP
chmod 755 "$root"

# Seen by dpkg and by the packages inside: no fsync, no documentation, no first cluster.
mkdir -p "$root/etc/dpkg/dpkg.cfg.d" "$root/etc/postgresql-common"
cat >"$root/etc/dpkg/dpkg.cfg.d/postgres-image" <<'CFG'
force-unsafe-io
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/lib/postgresql/*/lib/bitcode/*
CFG
echo 'create_main_cluster = false' >"$root/etc/postgresql-common/createcluster.conf"

bootstrap() {
  DEBIAN_FRONTEND=noninteractive debootstrap --variant=minbase --keyring="$keyring" \
    --include="postgresql-$version" "$suite" "$root" ${1:+"$1"} ${script:+"$script"} >&2
}
start=$SECONDS
say "making $image from Debian $suite; this takes about a minute"
if [ -n "$script" ] && [ -z "$mirror" ]; then
  die "found no Debian mirror in the apt configuration: set PGTEST_MIRROR"
fi
if ! bootstrap "$mirror"; then
  [ -e "$root/debootstrap/debootstrap.log" ] && tail -n 20 "$root/debootstrap/debootstrap.log" >&2
  die "debootstrap of $suite failed; if it was the signature, run: apt-get update && apt-get install debian-archive-keyring"
fi
[ -x "$root/usr/lib/postgresql/$version/bin/postgres" ] || die "debootstrap left no server of version $version"
say "debootstrap took $((SECONDS - start)) s"

# What no test needs. Without llvmjit.so the server simply does not use JIT.
rm -rf "$root"/var/cache/apt/* "$root"/var/cache/debconf/* "$root"/var/lib/apt/lists/* "$root"/var/log/* \
  "$root"/usr/share/{doc,man,info,locale,i18n} "$root"/usr/share/postgresql/*/man "$root"/usr/lib/postgresql/*/lib/{bitcode,llvmjit*} \
  "$root"/usr/lib/*/libLLVM* "$root"/usr/lib/*/libz3.so* "$root"/usr/lib/llvm-*

tar -C "$root" --numeric-owner --one-file-system -cf - . |
  docker import --change 'CMD ["bash"]' - "$image" >/dev/null
say "made $image in $((SECONDS - start)) s"
