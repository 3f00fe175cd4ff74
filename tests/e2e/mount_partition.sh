#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: a mount leaves an endpoint that is alive but cut off from the other members, be it a follower or the leader, for one on
# the side of the quorum, and an endpoint that it cannot reach any more without anybody saying so. Reads never fail, saves go on,
# and so does the making of files, each by one only.
# Each member has a network namespace with two links of its own: one to the clients, one to the other members.
[ -n "${IN_NET:-}" ] || { unshare --net true 2>/dev/null || { echo "needs network namespaces"; exit 77; }; IN_NET=1 exec unshare --net "$0" "$@"; }
CLUSTER_LIB=1
# shellcheck source=tests/e2e/mount_cluster.sh
. "$(dirname "$0")/mount_cluster.sh"

client_at() { echo "10.77.0.$1:2379"; }
peer_at() { echo "10.78.0.$1:2380"; }
declare -A NET_PID
member_run() { local i=$1; shift; exec nsenter --net="/proc/${NET_PID[$i]}/ns/net" "$@"; }

net_up() {
    local i net
    ip link set lo up
    for net in 77 78; do ip link add br$net type bridge && ip link set br$net up || return 1; done
    ip addr add 10.77.0.254/24 dev br77
    for i in $MEMBERS; do
        unshare --net sleep 3000 &
        NET_PID[$i]=$!
        disown "${NET_PID[$i]}"
        await 10 eval '[ "$(readlink /proc/${NET_PID['"$i"']}/ns/net)" != "$(readlink /proc/$$/ns/net)" ]' || return 1
        nsenter --net="/proc/${NET_PID[$i]}/ns/net" ip link set lo up
        for net in 77 78; do
            ip link add v$net.$i type veth peer name e$net netns "${NET_PID[$i]}" && ip link set v$net.$i master br$net up &&
                nsenter --net="/proc/${NET_PID[$i]}/ns/net" ip addr add "10.$net.0.$i/24" dev e$net &&
                nsenter --net="/proc/${NET_PID[$i]}/ns/net" ip link set e$net up || return 1
        done
    done
}
net_down() { # the links too: their namespaces end later than the processes in them
    local i net
    for i in "${NET_PID[@]}"; do kill "$i" 2>/dev/null; done
    NET_PID=()
    for net in 77 78; do
        for i in $MEMBERS; do ip link del "v$net.$i" 2>/dev/null; done
        ip link del "br$net"
    done
}

# net_cut NET MEMBER, net_heal NET MEMBER: on the bridge's side, so that the member does not notice
net_cut() { ip link set "v$1.$2" nomaster; }
net_heal() { ip link set "v$1.$2" master "br$1"; }

# away NET MEMBER: the member in use is cut off from the others (78) or from us (77) while work goes on
away() {
    local rc
    use "$2" && work_start || return 1
    net_cut "$1" "$2"
    moves_away "$2" 20 && await 20 eval 'timeout 15 sh -c "echo 1 >$M/c/after"' && work_ends 2
    rc=$?
    net_heal "$1" "$2"
    all_healthy && return $rc
}
follower_cut_off() { away 78 "$(follower)"; }
leader_cut_off() { away 78 "$(leader)"; }
silent() { away 77 "$(follower)"; }

creations_silent() { creations "net_cut 77" "net_heal 77" "$(follower)"; }
creations_leader_cut_off() { creations "net_cut 78" "net_heal 78" "$(leader)" 8000; }

run_partition() {
    net_up || { say_bad "the network"; return; }
    begin || return
    check "a follower in use is cut off from the others" follower_cut_off
    check "the leader in use is cut off from the others" leader_cut_off
    check "the endpoint in use is out of reach, and nothing says so" silent
    check "files are made while the endpoint in use is out of reach" creations_silent
    check "files are made while the leader in use is cut off from the others" creations_leader_cut_off
    for i in "${MEMBER_PID[@]}"; do kill -9 "$i" 2>/dev/null; done
    net_down
}
cluster_main run_partition
