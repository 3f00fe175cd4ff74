#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves how cairnd starts and stops: each thing that can be wrong gives one sentence, a status that is not 0, and nothing
# written; SIGTERM stops it within a second by that signal; what was acknowledged is there after SIGTERM and after SIGKILL.
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/pause.sh
O=${O:-build}
work=$(mktemp -d /var/tmp/cairn-start-XXXXXX)
port=$((24000 + $$ % 1000))
url=http://127.0.0.1:$port
export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=127.0.0.1:$port
pid=
trap '[ -n "$pid" ] && kill -9 $pid 2>/dev/null; rm -rf "$work"' EXIT
# Sanitizers make everything slower.
limit_ms=1000
[ -n "${SAN:-}${TSAN:-}" ] && limit_ms=8000

ok() { echo "ok - $1"; }
not_ok() { echo "not ok - $1"; sed 's/^/# /' "$work/log" | tail -n 5; }
check() { # what command...
    local what=$1
    shift
    if "$@"; then ok "$what"; else not_ok "$what"; fi
}
start() { # args...
    "$O/cairnd" --listen-client-urls $url --advertise-client-urls $url "$@" 2>"$work/log" &
    pid=$!
    for _ in $(seq 400); do
        grep -q 'ready to serve client requests' "$work/log" && return 0
        kill -0 $pid 2>/dev/null || return 1
        pause
    done
    return 1
}
stop() { # signal; the milliseconds it took in $took, the status in $status
    local from
    from=$(date +%s%N)
    kill "-$1" $pid
    wait $pid 2>/dev/null
    status=$?
    took=$((($(date +%s%N) - from) / 1000000))
    pid=
}
refused() { # what status words args...
    local what=$1 want=$2 words=$3 got before after
    shift 3
    before=$(find "$work" -not -name log | sort)
    timeout 20 "$O/cairnd" "$@" 2>"$work/log" >/dev/null
    got=$?
    after=$(find "$work" -not -name log | sort)
    if [ $got = "$want" ] && grep -qF -- "$words" "$work/log" && [ "$before" = "$after" ]; then
        ok "$what"
    else
        not_ok "$what (status $got)"
        [ "$before" = "$after" ] || echo "# it wrote: $(comm -13 <(echo "$before") <(echo "$after"))"
    fi
}
here="--listen-client-urls $url --advertise-client-urls $url"

refused "an unknown flag" 2 "flag provided but not defined: -foo" --foo
refused "a bad value" 2 'invalid value "x" for flag -max-txn-ops: parse error' --max-txn-ops x
refused "a setting that is not there yet" 1 "--metrics=extensive: this version of cairnd does not have this setting" --metrics extensive
# shellcheck disable=SC2086
refused "a name that is not in the cluster" 1 "couldn't find local name" $here --data-dir "$work/none" --name c \
    --initial-cluster a=http://localhost:2380,b=http://localhost:2381
python3 - "$port" "$work/bound" <<'PY' &
import os, socket, sys, time
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("127.0.0.1", int(sys.argv[1]))); s.listen()
open(sys.argv[2], "w").close()
end = time.time() + 60
while os.path.exists(sys.argv[2]) and time.time() < end: time.sleep(0.01)
PY
holder=$!
for _ in $(seq 400); do [ -e "$work/bound" ] && break; pause 0.02; done
# shellcheck disable=SC2086
refused "a port in use" 1 "stop the program that has this port" $here --data-dir "$work/none"
rm "$work/bound"
wait $holder
mkdir "$work/foreign" && chmod 700 "$work/foreign" && touch "$work/foreign/file"
# shellcheck disable=SC2086
refused "a foreign data directory" 1 "not Cairn's (it holds file)" $here --data-dir "$work/foreign"
mkdir -p "$work/etcd/member" && chmod 700 "$work/etcd"
# shellcheck disable=SC2086
refused "a data directory of etcd" 1 "is a data directory of etcd" $here --data-dir "$work/etcd"
mkdir "$work/open" && chmod 755 "$work/open"
# shellcheck disable=SC2086
refused "a data directory open to others" 1 "chmod 700" $here --data-dir "$work/open"

check "it starts" start --data-dir "$work/d"
check "a put" etcdctl put k one
# shellcheck disable=SC2086
refused "a locked data directory" 1 "in use by another cairnd" --listen-client-urls http://127.0.0.1:$((port + 1)) \
    --advertise-client-urls $url --data-dir "$work/d"
stop TERM
check "SIGTERM ends it by that signal (status $status)" [ $status = 143 ]
check "SIGTERM stops it within ${limit_ms} ms ($took ms)" [ "$took" -le $limit_ms ]
check "it starts again" start --data-dir "$work/d"
check "the put is there" [ "$(etcdctl get k --print-value-only)" = one ]
etcdctl put k two >/dev/null
stop KILL
check "it starts after SIGKILL" start --data-dir "$work/d"
check "the second put is there" [ "$(etcdctl get k --print-value-only)" = two ]
check "health over HTTP" [ "$(curl -s $url/health)" = '{"health":"true","reason":""}' ]
check "version over HTTP" grep -q '"etcdserver":"3' <(curl -s $url/version)
check "metrics over HTTP" grep -q '^etcd_server_has_leader 1' <(curl -s $url/metrics)
stop INT
check "SIGINT ends it by that signal" [ $status = 130 ]
printf 'name: filed\ndata-dir: %s\nlisten-client-urls: %s\nadvertise-client-urls: %s\n' "$work/f" $url $url >"$work/conf.yml"
"$O/cairnd" --config-file "$work/conf.yml" 2>"$work/log" &
pid=$!
for _ in $(seq 400); do grep -q 'ready to serve' "$work/log" && break; pause; done
check "a configuration file" grep -q '"name": *"filed"' <(etcdctl member list -w json)
stop TERM
check "every line of its log is JSON" bash -c '! jq -e "has(\"level\") and has(\"ts\") and has(\"caller\") and has(\"msg\")" "$1" | grep -v true' - "$work/log"
