#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# How long three members take no put when their leader goes: tests/robust/failover.c says what is measured, and how.
# Default timers (heartbeat 100 ms, election 1 s). Needs root, for network namespaces.
#
#   ROUNDS=n  (50)      ETCD=path  another etcd than Debian's
#   ONLY="cairn etcd"   HOWS="kill pause cut stop move none"
set -u
cd "$(dirname "$0")/../.." || exit 1
O=${O:-build}
robust=$O/tests/robust/robust
etcd=${ETCD:-$(command -v etcd)}
why=$("$robust" probe) || { status=$?; echo "failover: $why"; exit $status; }
work=$(mktemp -d "${TMPDIR:-/var/tmp}/cairn-failover-XXXXXX")
trap 'rm -rf "$work"' EXIT
printf '%-8s%-8s%8s%10s%10s%10s   milliseconds without a put\n' leader target rounds p50 p99 max
for how in ${HOWS:-kill pause cut stop move none}; do
    for target in ${ONLY:-cairn etcd}; do
        program=$O/cairnd
        [ "$target" = etcd ] && program=$etcd
        rm -rf "$work/d" && mkdir "$work/d"
        out=$(timeout 1800 "$robust" failover "$program" "$work/d" "$how" "${ROUNDS:-50}" | tail -n 1)
        # shellcheck disable=SC2086 # four words
        printf '%-8s%-8s%8s%10s%10s%10s\n' "$how" "$target" $(sed "s/[a-z0-9_]*=//g" <<<"${out:-- - - -}")
    done
done
echo "etcd: $("$etcd" --version | head -1)"
