#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: cairnfs mounts a server that asks clients for a certificate, by https:// and by --cacert alone, reads and writes there;
# it is refused, and reaches nothing, with a stranger's certificate or authority; a file that is none is named at the start.
. "$(dirname "$0")/cluster_lib.sh"
. "$(dirname "$0")/tls_lib.sh"
[ -e /dev/fuse ] && [ -x "$O/cairnfs" ] && command -v etcdctl >/dev/null || exit 77
BASE=$((23540 + $$ % 4 * 20))
client() { echo "https://127.0.0.1:$((BASE + $1))"; }
M=$T/m
mkdir "$M"
FS=
unmount() {
    fusermount3 -uz "$M" 2>/dev/null
    [ -n "$FS" ] && kill "$FS" 2>/dev/null && wait "$FS" 2>/dev/null
    FS=
}
trap 'unmount; cleanup' EXIT
ca_make ca
ca_make other
cert_make ca a 1
cert_make ca client 1
cert_make other stranger 1
own() { echo "--cert=$C/$1.pem --key=$C/$1.key"; }
mount_at() { # args...
    "$O/cairnfs" -f "$@" "$M" >"$T/fs.log" 2>&1 &
    FS=$!
}
reads() { [ "$(cat "$M/$1" 2>/dev/null)" = "$2" ]; }
ctl() { timeout 20 etcdctl --endpoints "$(client 1)" --cacert "$C/ca.pem" --cert "$C/client.pem" --key "$C/client.key" "$@"; }

member_start a 1 --cert-file "$C/a.pem" --key-file "$C/a.key" --trusted-ca-file "$C/ca.pem" --client-cert-auth
check "a server" await 30 ready a
ctl put one 1 >/dev/null
# shellcheck disable=SC2046 # words
mount_at --cacert="$C/ca.pem" $(own client) "$(client 1)"
check "https:// is mounted" await 20 reads one 1
check "written through it" eval 'echo -n 2 >"$M/two"'
same "and there" 2 "$(ctl get two --print-value-only)"
unmount
mount_at -o "cacert=$C/ca.pem,cert=$C/client.pem,key=$C/client.key" "127.0.0.1:$((BASE + 1))"
check "so is host:port with the options of an fstab line" await 20 reads two 2
unmount
# shellcheck disable=SC2046
for args in "--cacert=$C/ca.pem $(own stranger)" "--cacert=$C/other.pem $(own client)" "--cacert=$C/ca.pem"; do
    # shellcheck disable=SC2086
    mount_at $args -o timeout=2 "$(client 1)"
    await 6 reads one 1 && not_ok "refused: ${args//$C\//}" || ok "refused: ${args//$C\//}"
    unmount
done
check "a file that is not there is named" grep -q "$C/none.pem: No such file" <("$O/cairnfs" -f --cacert="$C/none.pem" "$(client 1)" "$M" 2>&1)
check "a certificate without its key" grep -q 'cert and key go together' <("$O/cairnfs" -f --cert="$C/a.pem" "$(client 1)" "$M" 2>&1)
member_stop a TERM
exit ${FAILED:-0}
