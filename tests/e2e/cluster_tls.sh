#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves, with real members that speak TLS to each other and to clients, with openssl's certificates: etcdctl and curl work;
# a stranger's, an expired and a revoked certificate are refused, on either side; files that are replaced are used by the
# next handshake; a member that is killed comes back; a late one gets a snapshot; one whose certificate is refused neither
# harms the others nor fills their logs; a thousand handshakes that stall cost bounded memory and delay nobody; certificates
# of a member's own making do for a cluster.
. "$(dirname "$0")/cluster_lib.sh"
. "$(dirname "$0")/tls_lib.sh"
command -v etcdctl >/dev/null && command -v curl >/dev/null && command -v python3 >/dev/null || exit 77
BASE=$((23500 + $$ % 4 * 20))
client() { echo "https://127.0.0.1:$((BASE + $1))"; }
peer() { echo "https://127.0.0.1:$((BASE + 10 + $1))"; }
USER=client
ctl() { # n args...
    local at
    at=$(client "$1")
    shift
    timeout 30 etcdctl --endpoints "$at" --cacert "$C/ca.pem" ${USER:+--cert "$C/$USER.pem" --key "$C/$USER.key"} "$@"
}
fails() { ! "$@"; }
quick() { "$1" "$2" --dial-timeout 3s --command-timeout 3s "${@:3}"; }
web() { curl -sS --max-time 10 --cacert "$C/ca.pem" --cert "$C/client.pem" --key "$C/client.key" "$@"; }
says() { grep -q "$2" "$T/$1.log"; }

ca_make ca
ca_make other
for m in a b c d client revoked; do cert_make ca $m 1; done
cert_make ca expired 0
cert_make other stranger 1
crl_make ca now
declare -A N=([a]=1 [b]=2 [c]=3 [d]=4)
CLUSTER=$(cluster_of a:1 b:2 c:3)
start() { # name, certificate of the peer port, flags
    # No member waits so long for a heartbeat that a slow machine makes it stand: an election has a cause.
    member_start "$1" "${N[$1]}" --cert-file "$C/$1.pem" --key-file "$C/$1.key" --trusted-ca-file "$C/ca.pem" --client-cert-auth \
        --client-crl-file "$C/now.crl" --peer-cert-file "$C/$2.pem" --peer-key-file "$C/$2.key" --peer-trusted-ca-file "$C/ca.pem" \
        --peer-client-cert-auth --peer-crl-file "$C/now.crl" --snapshot-count 500 --snapshot-catchup-entries 100 \
        --heartbeat-interval 200 --election-timeout 3000 "${@:3}"
}

for m in a b c; do start $m $m; done
check "three members start" await 30 all_ready a b c
await 20 leader_n 1 2 3 >/dev/null

# ---- clients ----
check "put" await 20 ctl 1 put x 1
same "get elsewhere" 1 "$(ctl 2 get x --print-value-only)"
ctl 3 watch w >"$T/watched" 2>&1 &
W=$!
put_seen() { ctl 1 put w seen >/dev/null && grep -q seen "$T/watched"; }
check "a watch over TLS" await 20 put_seen
kill $W 2>/dev/null
wait $W 2>/dev/null
same "/health" '{"health":"true","reason":""}' "$(web "$(client 1)/health")"
check "/version" grep -q etcdserver <(web "$(client 1)/version")
check "/metrics, all of it" grep -q process_virtual_memory_bytes <(web "$(client 1)/metrics")
large=$(head -c 700000 /dev/zero | tr '\0' x)
ctl 1 put large <<<"$large" >/dev/null
same "a value of many records" "$(md5sum <<<"$large")" "$(ctl 2 get large --print-value-only | head -n 1 | md5sum)"

hands() { # flags of s_client: what is shaken
    timeout 10 openssl s_client -connect "127.0.0.1:$((BASE + 1))" -CAfile "$C/ca.pem" -cert "$C/client.pem" -key "$C/client.key" "$@" \
        </dev/null 2>&1
}
check "ALPN: h2" grep -q 'ALPN protocol: h2' <(hands -alpn h2)
check "ALPN: http/1.1 when offered" grep -q 'ALPN protocol: http/1.1' <(hands -alpn h2,http/1.1)
check "ALPN: anything else is refused" grep -qE 'alert number 120|no application protocol' <(hands -alpn spdy)
check "TLS 1.1 is refused" grep -qE 'alert protocol version|no protocols available|unsupported protocol' <(hands -tls1_1)
check "TLS 1.2 is spoken" grep -q 'Protocol  *: TLSv1.2' <(hands -tls1_2)
check "no tickets" fails grep -q 'TLS session ticket' <(hands -tls1_2)
check "plain bytes are refused" fails curl -s --max-time 5 "http://127.0.0.1:$((BASE + 1))/health"

# ---- whose certificate is refused ----
for USER in stranger expired ''; do check "client ${USER:-without a certificate} is refused" fails quick ctl 1 put x "$USER"; done
check "and that is logged" await 5 says a 'a TLS handshake failed'
USER=revoked
check "a client in good standing" await 20 ctl 1 put x 2
crl_make ca now revoked
check "is refused once it is revoked" fails quick ctl 1 put x 3
check "as the log says" await 5 says a 'it has been revoked'
USER=client
check "a server's certificate by a stranger is refused by the client" fails quick timeout 10 etcdctl --endpoints "$(client 1)" --cacert "$C/other.pem" get x
same "nothing was written by them" 2 "$(ctl 3 get x --print-value-only)"

# ---- files replaced ----
serial() { openssl x509 -noout -serial; }
cert_make ca fresh 1
cert_replace fresh a
same "a new handshake uses the new certificate" "$(serial <"$C/fresh.pem")" "$(hands | serial)"
check "without a restart" ctl 1 get x

# ---- members ----
bulk() { # n count
    python3 - "$2" <<'END' >"$T/txns"
import sys
n = int(sys.argv[1])
for i in range(n): print("put k%d v%d" % (i, i))
END
    split -l 100 "$T/txns" "$T/txn."
    for f in "$T"/txn.*; do { echo; cat "$f"; echo; echo; } | ctl "$1" txn >/dev/null || return 1; done
}
check "keys" bulk 1 2000
member_stop c KILL
check "put without one" await 20 ctl 1 put x 4
start c c
check "a killed member comes back" await 30 ready c
got() { [ "$(ctl "$1" get x --consistency s --print-value-only 2>/dev/null)" = "$2" ]; }
check "and is level" await 20 got 3 4

term() { status_of 1 raftTerm; }
member_stop c TERM
await 20 leader_n 1 2 >/dev/null
before=$(term)
: >"$T/a.log"
start c stranger
check "a member with a stranger's certificate is told why" await 20 says c 'remote error: tls: '
check "the others say why they refuse it" await 20 says a 'a TLS handshake failed.*certificate of ."stranger'
for i in 1 2 3 4 5 6 7 8; do ctl 1 put x "$i" >/dev/null || not_ok "put $i beside it"; pause 0.3; done
same "no election for it" "$before" "$(term)"
lines=$(wc -l <"$T/a.log")
check "few lines about it ($lines)" [ "$lines" -lt 12 ]
member_stop c KILL
start c expired
check "one with an expired certificate says so" await 20 says c 'certificate has expired\|remote error: tls: certificate expired'
member_stop c KILL
cert_replace revoked c
start c c
check "one with a revoked certificate is refused" await 20 says a 'certificate of ."revoked.*revoked'
member_stop c KILL
cert_make ca c 1
start c c
check "and with a good one it is back" await 30 ready c
check "as it was" await 20 got 3 8

check "a fourth is added" await 20 ctl 1 member add d --peer-urls "$(peer 4)"
CLUSTER=$(cluster_of a:1 b:2 c:3 d:4) start d d --initial-cluster-state existing
check "it joins" await 30 ready d
check "by a snapshot" says d 'a snapshot has been received'
same "with all keys" 2000 "$(ctl 4 get k --prefix --keys-only --consistency s | grep -c .)"

# ---- a flood ----
rss() { awk '/VmRSS/ { print $2 }' "/proc/${PID[$1]}/status"; }
before=$(rss a)
cat >"$T/flood.py" <<'END'
import socket, sys, time
port, n = int(sys.argv[1]), int(sys.argv[2])
s = [socket.create_connection(("127.0.0.1", port)) for _ in range(n)]
for x in s: x.send(b"\x16\x03\x01\x02\x00\x01")
print("up", flush=True)
end = time.monotonic() + 40
left = s
while left and time.monotonic() < end:  # each is closed by the server
    still = []
    for x in left:
        x.settimeout(max(0.01, end - time.monotonic()))
        try:
            if x.recv(100): still.append(x)
        except socket.timeout: still.append(x)
        except OSError: pass
    left = still
print("left", len(left), flush=True)
END
ulimit -n 4096
python3 "$T/flood.py" $((BASE + 1)) 1000 >"$T/flood" 2>&1 &
F=$!
check "1,000 handshakes that stall" await 20 grep -q up "$T/flood"
check "put meanwhile" await 10 ctl 1 put x 9
check "within ${CAP:=$((64 * SLOW))} MB ($((($(rss a) - before) / 1024)))" [ $(($(rss a) - before)) -lt $((CAP << 10)) ]
wait $F
same "each is given up" "left 0" "$(tail -n 1 "$T/flood")"
for m in a b c d; do member_stop $m TERM; done

# ---- certificates of their own making ----
CLUSTER=$(cluster_of e:5 f:6)
N+=([e]=5 [f]=6)
for m in e f; do member_start $m "${N[$m]}" --peer-auto-tls --auto-tls; done
check "--auto-tls and --peer-auto-tls" await 30 all_ready e f
own() { timeout 30 etcdctl --endpoints "$(client 5)" --insecure-skip-tls-verify --insecure-transport=false "$@"; }
check "put" own put x 1
check "the key is its owner's alone" [ "$(stat -c %a "$T/e/fixtures/peer/key.pem")" = 600 ]
for m in e f; do member_stop $m TERM; done
exit ${FAILED:-0}
