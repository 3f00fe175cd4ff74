#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: a quota that is reached raises NOSPACE, refuses puts, txns with puts and grants, and nothing else; compaction,
# defragmentation and disarming give the room back. Automatic compaction by time gives up old revisions.
set -u
cd "$(dirname "$0")/../.." || exit 1
O=${O:-build}
command -v etcdctl >/dev/null || { echo "no etcdctl"; exit 77; }
export ETCDCTL_API=3
port=${E2E_PORT:-21440}
tmp=$(mktemp -d /tmp/cairn-space-XXXXXX)
pid=
stop() { [ -n "$pid" ] && { kill "$pid" 2>/dev/null; wait "$pid" 2>/dev/null; }; pid=; }
trap 'stop; rm -rf "$tmp"' EXIT
ctl() { timeout 20 etcdctl --endpoints "127.0.0.1:$port" "$@"; }
failed=0
check() { # name command...
    local name=$1
    shift
    if "$@" >"$tmp/out" 2>&1; then
        echo "ok - $name"
    else
        echo "not ok - $name"
        sed 's/^/# /' "$tmp/out" | tail -n 5
        failed=1
    fi
}
says() { # text command...
    local text=$1
    shift
    "$@" >"$tmp/said" 2>&1
    cat "$tmp/said"
    grep -q -e "$text" "$tmp/said"
}
await() {
    for _ in $(seq 400); do
        "$@" >"$tmp/await" 2>&1 && return 0
        sleep 0.05
    done
    cat "$tmp/await"
    return 1
}
start() { # flags...
    "$O/cairnd" --data-dir "$tmp/data" --listen-client-urls "http://127.0.0.1:$port" \
        --advertise-client-urls "http://127.0.0.1:$port" --listen-peer-urls "http://127.0.0.1:$((port + 1))" \
        --initial-advertise-peer-urls "http://127.0.0.1:$((port + 1))" \
        --initial-cluster "default=http://127.0.0.1:$((port + 1))" "$@" >>"$tmp/log" 2>&1 &
    pid=$!
    await ctl get ready || { tail -n 5 "$tmp/log"; exit 1; }
}
revision() { ctl get x -w json | grep -o '"revision":[0-9]*' | cut -d: -f2; }

# ---- the quota --------------------------------------------------------------------------------
start --quota-backend-bytes 20000000
head -c 1000000 /dev/zero | tr '\0' x >"$tmp/value"
fill() {
    local n=0
    while ctl put "k$((n % 3))" <"$tmp/value"; do
        n=$((n + 1))
        [ $n -lt 25 ] || return 1
    done
    [ $n -ge 10 ]
}
check "the quota is reached" fill
check "the alarm is raised" await says NOSPACE ctl alarm list
check "a put is refused" says "mvcc: database space exceeded" ctl put a b
check "a grant is refused" says "mvcc: database space exceeded" ctl lease grant 10
check "a txn with a put is refused" says "mvcc: database space exceeded" ctl txn <<<$'\nput a b\n\n\n'
check "a txn without is not" says SUCCESS ctl txn <<<$'\ndel k1\n\n\n'
check "a get is not" ctl get k0
check "a delete is not" says '^1$' ctl del k0
check "the status says it" says NOSPACE ctl endpoint status
check "a compaction is not refused" ctl compaction "$(revision)" --physical
check "nor a defragmentation" ctl defrag
check "still refused" says "mvcc: database space exceeded" ctl put a b
check "disarmed" says NOSPACE ctl alarm disarm
check "a put goes through again" ctl put a b
check "the alarm is gone" [ -z "$(ctl alarm list)" ]
small() { [ "$(ctl endpoint status -w json | grep -o '"dbSize":[0-9]*' | cut -d: -f2)" -lt 5000000 ]; }
check "the file is small" small
stop

# ---- automatic compaction -----------------------------------------------------------------------
start --auto-compaction-mode periodic --auto-compaction-retention 1s
old=$(revision)
ctl put a c >/dev/null
check "an old revision is there at first" ctl get a --rev "$old"
compacted() { says "has been compacted" ctl get a --rev "$old"; }
check "and compacted in time" await compacted
check "the newest stays" says '^c$' ctl get a
stop
exit $failed
