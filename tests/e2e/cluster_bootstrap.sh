#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: founding members may start in any order, wait as long as it takes and stop at once; flags that contradict each other, the data
# directory or the running cluster give one sentence and status 1; a founder that lost its data does not vote a second time; a joiner
# must fit the members there are; --force-new-cluster keeps the data, and whoever was removed by it is refused, and can come back new.
set -u
cd "$(dirname "$0")/../.." || exit 1
# shellcheck source=tests/e2e/cluster_lib.sh
. tests/e2e/cluster_lib.sh
command -v etcdctl >/dev/null || { echo "1..0 # SKIP no etcdctl"; exit 77; }

refused() { # what words name n flags...: it ends with status 1 and says so
    local what=$1 words=$2 name=$3
    shift 2
    member_start "$@"
    await 30 gone "$name" || kill -9 "${PID[$name]}"
    member_wait "$name"
    if [ $status = 1 ] && grep -qF -- "$words" "$T/$name.log"; then ok "$what"; else not_ok "$what (status $status)"; fi
}
all() { cluster_of a:1 b:2 c:3; }
says() { grep -q "$1" "$T/$2.log"; }

# ---- flags against each other ----------------------------------------------------------------------------------------
CLUSTER="a=$(peer 1),b=$(peer 2)" refused "a name that is not in the cluster" "couldn't find local name \\\"x\\\" in the initial" x 1
CLUSTER="a=$(peer 1),b=$(peer 2),b=$(peer 1)" refused "a URL twice" "has duplicate url" a 1
CLUSTER="a=$(peer 3),b=$(peer 2)" refused "another URL than advertised" "but missing from --initial-advertise-peer-urls=$(peer 1)" a 1
CLUSTER="a=$(peer 1),b" refused "no URL" "URL scheme must be http, https, unix, or unixs" a 1
CLUSTER="a=$(peer 1),b=$(peer 2)" refused "nobody to join" "cannot fetch cluster info from peer urls: could not retrieve" a 1 \
    --initial-cluster-state existing
same "none of it left a store" "" "$(ls -d "$T"/*/base-1 2>/dev/null)"
rm -rf "${T:?}"/a "${T:?}"/x

# ---- any order ---------------------------------------------------------------------------------------------------------
CLUSTER=$(all)
member_start c 3
check "the first one waits" await 20 says "waiting for a leader" c
not_ready() { ! ready c; }
check "and does not serve" not_ready
member_stop c TERM
same "SIGTERM ends the waiting by that signal" 143 "$status"
check "at once ($took ms)" [ "$took" -le $((1000 * SLOW)) ]
member_start c 3
member_start a 1
check "two of three serve" await 30 ctl 3 put k one
member_start b 2
check "the third comes later" await 30 ctl 2 get k
same_ids() { [ "$(for n in 1 2 3; do ctl $n member list | sort; done | sort | uniq -c | awk '{ print $1 }' | sort -u)" = 3 ]; }
check "all have the same ids" await 10 same_ids

# ---- flags against the data directory, and against the others ------------------------------------------------------------
CLUSTER=$(cluster_of d:1) refused "a peer port in use" "or choose another --listen-peer-urls" d 4 --listen-peer-urls "$(peer 1)" \
    --initial-advertise-peer-urls "$(peer 1)"
rm -rf "${T:?}/d"
member_stop b TERM
refused "another token" "has founded its cluster with --initial-cluster-token etcd-cluster, not other" b 2 --initial-cluster-token other
refused "another member's directory" "belongs to member" c2 4 --data-dir "$T/b" --name d --initial-advertise-peer-urls "$(peer 4)" \
    --listen-peer-urls "$(peer 4)"
CLUSTER='' member_start b 2
check "no flags at all" await 30 ready b
member_stop b KILL
mv "$T/b" "$T/b.lost"
refused "a founder without its data" "has already been bootstrapped" b 2
rm -rf "${T:?}/b"
CLUSTER=$(cluster_of a:1 c:3 d:4) refused "a joiner that was not added" "PeerURLs: no match found for existing member" d 4 \
    --initial-cluster-state existing
CLUSTER=$(cluster_of a:1 b:2 c:3 d:4) refused "a joiner with too many others" "member count is unequal" d 4 --initial-cluster-state existing
mv "$T/b.lost" "$T/b"
member_start b 2
check "the lost one comes back with its data" await 30 ready b

# ---- --force-new-cluster --------------------------------------------------------------------------------------------------
check "a put to all" ctl 1 put k two
for m in b c a; do member_stop $m KILL; done
CLUSTER='' member_start a 1 --force-new-cluster
check "one goes on alone" await 30 ctl 1 put k three
same "it is alone" 1 "$(ctl 1 member list | wc -l)"
same "with its data" two "$(ctl 1 get k --rev 3 --print-value-only)"
CLUSTER='' member_start b 2
check "another one is refused and ends" await 30 gone b
member_wait b
same "with status 0" 0 "$status"
check "and says why" says "permanently removed" b
check "with its old data it does not come back" eval 'CLUSTER="" member_start b 2; await 30 gone b && member_wait b && says "must be removed" b'
member_stop a TERM
CLUSTER='' member_start a 1
check "the next start needs no flag" await 30 ctl 1 put k four
rm -rf "${T:?}/b"
check "the other is added again" ctl 1 member add b --peer-urls "$(peer 2)"
CLUSTER=$(cluster_of a:1 b:2) member_start b 2 --initial-cluster-state existing
end=$((SECONDS + 30 * SLOW))
until [ -e "$T/b/CURRENT" ] || [ $SECONDS -ge $end ]; do pause 0.005; done
member_stop b KILL
echo "# killed while it joins: $(grep -c 'the snapshot is installed' "$T/b.log") snapshots installed"
CLUSTER=$(cluster_of a:1 b:2) member_start b 2 --initial-cluster-state existing
check "and serves" await 30 ctl 2 put k five
metric() { curl -s "$(client 1)/metrics" | grep -q "^$1"; }
check "metrics know the other" metric 'etcd_network_active_peers{Local="[0-9a-f]*",Remote="[0-9a-f]*"} 1'
same "with what was there" five "$(ctl 1 get k --print-value-only)"
exit "${FAILED:-0}"
