#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# etcd 3.4.23's own end-to-end tests (Debian's golang-etcd-server-dev) against cairnd as "etcd": what passes, of how many. Not a
# part of make test: it needs Go, and many of its tests ask for what cairnd does not have yet.
#
#   tests/etcd-e2e.sh [regexp]      default: the tests without auth, v2 and the JSON gateway
#   SIZE=1 tests/etcd-e2e.sh        clusters of one member instead of three
set -u
cd "$(dirname "$0")/.." || exit 1
O=$PWD/${O:-build}
contrib/deps.sh go || exit 1
work=$(mktemp -d /var/tmp/cairn-e2e-XXXXXX)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin"
ln -s "${CAIRND:-$O/cairnd}" "$work/bin/etcd"
ln -s "$(command -v etcdctl)" "$work/bin/etcdctl"
gocode=$(dpkg -L golang-etcd-server-dev | grep -m1 '/gocode$')
export GO111MODULE=off GOPATH=$gocode GOCACHE=$work/cache GOFLAGS=
src=$gocode/src/go.etcd.io/etcd
# Their clusters have three members that speak TLS to each other by default; SIZE is an overlay made from the package at run time.
sed -e "s/clusterSize: \( *\)3,/clusterSize: \1${SIZE:-3},/" "$src/tests/e2e/cluster_test.go" >"$work/cluster_test.go"
printf '{"Replace": {"%s": "%s"}}\n' "$src/tests/e2e/cluster_test.go" "$work/cluster_test.go" >"$work/overlay.json"
go test -overlay "$work/overlay.json" -c -o "$work/e2e.test" go.etcd.io/etcd/tests/e2e || exit 1
cp -r "$src/tests/e2e" "$work/e2e" && cd "$work/e2e" || exit 1
pattern=${1:-'NoTLS$|^TestCtlV3(Put|Get|Del|Watch|Lease|Member|TxnInteractive).*(ClientTLS|PeerTLS|AutoTLS|FlagByEnv)$|^TestCtlV3(Put|Get|Del|Watch|MemberList|GetRevokedCRL)$|^Test(EtcdPeerCNAuth|EtcdPeerNameAuth|V3MetricsSecure)$|^TestCtlV3(Lock|Elect|Compact|CompactPhysical|Defrag|Version|DialWithHTTPScheme|PutTimeout|GetTimeout|DelTimeout|WatchTimeout|WatchInteractive|PutIgnoreValue|PutIgnoreLease|GetFormat|GetRev|GetKeysOnly|GetQuorum|EndpointHealth|EndpointStatus|EndpointHashKV|Alarm|TxnInteractiveFail|MakeMirror.*|MemberAddForLearner|MoveLeaderScenarios)$|^Test(V3MetricsInsecure|EtcdMultiPeer|EtcdUnixPeers)$'}
timeout 3000 "$work/e2e.test" -test.v -test.timeout 50m -test.run "$pattern" -bin-dir "$work/bin" \
    -cert-dir "$src/integration/fixtures" >"$work/out" 2>&1
grep -E '^--- ' "$work/out" | sort
echo "$(grep -c '^--- PASS' "$work/out") passed, $(grep -c '^--- FAIL' "$work/out") failed, $(grep -c '^--- SKIP' "$work/out") skipped"
cp "$work/out" "$O/etcd-e2e.log"
