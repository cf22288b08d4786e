#!/bin/sh
# rootfs.sh DIRECTORY: gathers what the final image has of its base image: the newest pg_dump there is, a shell (for hooks, and for
# platforms that start commands by one), and the libraries that they need. Nothing else, so that the image is small and little in it can be
# attacked. Runs on Debian and its kin, as the official Postgres image is.
set -eu
root=${1:?give the directory to fill}

bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
mkdir -p "$root/tmp" "$root/etc/ssl/certs" "$root/bin" "$root/usr/bin" "$root$bin"
chmod 1777 "$root/tmp"
cp "$bin/pg_dump" "$root$bin/"
cp -L /bin/sh "$root/bin/sh"

# Paths as the loader finds them; it lists itself, too.
for program in "$bin/pg_dump" /bin/sh; do
  ldd "$program"
done | grep -o '/[^ ]*' | sort -u | while read -r library; do
  mkdir -p "$root$(dirname "$library")"
  cp -L "$library" "$root$library"
done

echo 'app:x:65532:65532:heroku-migrator:/tmp:/bin/sh' >"$root/etc/passwd"
echo 'app:x:65532:' >"$root/etc/group"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
chroot "$root" "$bin/pg_dump" --version
