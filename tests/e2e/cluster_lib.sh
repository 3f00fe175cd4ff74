# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# cluster_lib.sh - members of a cluster on this machine, by name; sourced by cluster_*.sh.
#
#     member_start NAME N [FLAG...]   N: 0-9, its ports; its data lies in $T/NAME, its log in $T/NAME.log
#     await SECONDS COMMAND...        until it succeeds; never a sleep that hopes
#     member_stop NAME SIGNAL         the status in $status, the milliseconds in $took
# SERVER: the program (cairnd, or an etcd to compare with). CLUSTER: the members as --initial-cluster has them.
O=${O:-build}
SERVER=${SERVER:-$O/cairnd}
T=$(mktemp -d /var/tmp/cairn-cluster-XXXXXX)
BASE=$((22200 + $$ % 4 * 20))
declare -A PID=()
export ETCDCTL_API=3
SLOW=1
[ -n "${SAN:-}${TSAN:-}" ] && SLOW=6

cleanup() {
    local p
    for p in "${PID[@]}"; do kill -9 "$p" 2>/dev/null; done
    wait 2>/dev/null
    rm -rf "$T"
}
trap cleanup EXIT

ok() { echo "ok - $1"; }
not_ok() {
    echo "not ok - $1"
    FAILED=1
    [ -s "$T/out" ] && sed 's/^/# /' "$T/out" | tail -n 12
    tail -qn 3 "$T"/*.log 2>/dev/null | sed 's/^/# /'
}
check() { # what command...
    local what=$1
    shift
    if "$@" >"$T/out" 2>&1; then ok "$what"; else not_ok "$what"; fi
}
same() { # what want got
    printf 'want: %s\n got: %s\n' "$2" "$3" >"$T/out"
    if [ "$2" = "$3" ]; then ok "$1"; else not_ok "$1"; fi
}
. tests/pause.sh
await() { # seconds command...
    local end=$((SECONDS + $1 * SLOW + 1))
    shift
    while [ $SECONDS -lt $end ]; do
        "$@" >"$T/await" 2>&1 && return 0
        pause 0.1
    done
    cat "$T/await"
    return 1
}
client() { echo "http://127.0.0.1:$((BASE + $1))"; }
peer() { echo "http://127.0.0.1:$((BASE + 10 + $1))"; }
cluster_of() { # name:n...
    local m list=
    for m; do list="$list,${m%:*}=$(peer "${m#*:}")"; done
    echo "${list#,}"
}
ctl() { # n args...: etcdctl at that member
    local at
    at=$(client "$1")
    shift
    timeout 30 etcdctl --endpoints "${at#http://}" "$@"
}
member_start() { # name n flags...
    local name=$1 n=$2
    shift 2
    "$SERVER" --name "$name" --data-dir "$T/$name" --listen-client-urls "$(client "$n")" --advertise-client-urls "$(client "$n")" \
        --listen-peer-urls "$(peer "$n")" --initial-advertise-peer-urls "$(peer "$n")" ${CLUSTER:+--initial-cluster "$CLUSTER"} \
        "$@" >"$T/$name.log" 2>&1 &
    PID[$name]=$!
}
ready() { grep -q 'ready to serve client requests' "$T/$1.log"; }
all_ready() { for m; do ready "$m" || return 1; done; }
revision() { ctl "$1" endpoint status -w json 2>/dev/null | grep -o '"revision":[0-9]*'; }
level() { # n n: the same revision
    local one
    one=$(revision "$1")
    [ -n "$one" ] && [ "$one" = "$(revision "$2")" ]
}
hash() { ctl "$1" endpoint hashkv -w json | grep -o '"hash":[0-9]*'; }
current() { # name base|wal: its directory
    echo "$T/$1/$2-$(sed -n "s/^$2 \([0-9]*\).*/\1/p" "$T/$1/CURRENT")"
}
gone() { ! kill -0 "${PID[$1]}" 2>/dev/null; }
member_stop() { # name signal
    local from
    from=$(date +%s%N)
    kill "-$2" "${PID[$1]}"
    member_wait "$1"
    took=$((($(date +%s%N) - from) / 1000000))
}
member_wait() { # name
    wait "${PID[$1]}" 2>/dev/null
    status=$?
    unset "PID[$1]"
}
# Of a list on one line each: the field of a member. 1 id, 2 status, 3 name, 4 peers, 5 clients, 6 learner.
field() { # n name field
    ctl "$1" member list | awk -F', ' -v name="$2" -v f="$3" '$3 == name { print $f }'
}
status_of() { # n json-field: of the member's status
    ctl "$1" endpoint status -w json | sed 's/.*"'"$2"'":\([^,}]*\).*/\1/'
}
leader_n() { # ns...: which of them leads
    local n
    for n; do
        [ "$(ctl "$n" endpoint status 2>/dev/null | awk -F', ' '{ print $5 }')" = true ] && echo "$n" && return 0
    done
    return 1
}
