#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs every Debian package the project builds, runs and tests with, if it is missing: as root, through sudo, or
# else by naming them. "deps.sh go" also installs what etcd's own end-to-end tests need (tests/etcd-e2e.sh).
set -eu
packages="gcc libc6-dev make pkg-config protobuf-c-compiler protobuf-compiler
  libprotobuf-c-dev libgrpc-dev liblmdb-dev libfuse3-dev fuse3 libmicrohttpd-dev libyaml-dev libssl-dev
  etcd-server etcd-client curl jq python3 inotify-tools attr rsync vim nano ed perl patch strace git moreutils
  procps iproute2 sed tar findutils util-linux"
[ "${1:-}" = go ] && packages="$packages golang-etcd-server-dev golang-go"

missing=
for p in $packages; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
    as_root=
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root=sudo
else
    echo "deps: these Debian packages are missing; install them as root:" >&2
    echo "  apt-get install --no-install-recommends$missing" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
echo "deps: installing$missing"
# policy-rc.d: the packages of servers must not start them.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | $as_root tee $policy >/dev/null
    $as_root chmod 755 $policy
    trap '$as_root rm -f $policy' EXIT
fi
# shellcheck disable=SC2086 # a list of words
$as_root apt-get -q -o Dpkg::Use-Pty=0 install -y --no-install-recommends $missing >/tmp/cairn-deps.$$ 2>&1 || {
    $as_root apt-get -q update >/dev/null 2>&1 || true
    $as_root apt-get -q -o Dpkg::Use-Pty=0 install -y --no-install-recommends $missing >/tmp/cairn-deps.$$ 2>&1 || {
        cat /tmp/cairn-deps.$$ >&2
        echo "deps: the packages above could not be installed" >&2
        exit 1
    }
}
rm -f /tmp/cairn-deps.$$
