#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: what the options change (cached, linear, strict, commit=write, conflict=fail), that .etcd/config reads and writes them while
# mounted, and that df shows the server's quota.
# shellcheck source=tests/e2e/mount_lib.sh
. "$(dirname "$0")/mount_lib.sh"

said() { grep -q "$1" "$M/.etcd/errors"; }
config() { grep "^$1=" "$M/.etcd/config" | cut -d= -f2-; }
# /usr/bin/printf: the builtin writes line by line.
refused() { ! /usr/bin/printf '%s\n' "$1" >"$M/.etcd/config" && said "$2"; }

config_text() {
    same "$(config linear)" 0 && printf 'linear=1\ngrace=7\n' >"$M/.etcd/config" &&
        same "$(config linear) $(config grace)" "1 7" && echo linear=0 >"$M/.etcd/config" && same "$(config linear)" 0 &&
        cat "$M/.etcd/config" >"$T/config" && cat "$T/config" >"$M/.etcd/config" && diff "$T/config" "$M/.etcd/config" || return 1
    refused "linear=maybe" "does not take that value" && refused "no-such=1" "no such option" && refused "cached=1" "settled when the mount" &&
        refused $'linear=1\ngrace=-1' "not a number" && same "$(config linear)" 0
}
config_lists() {
    local was; was=$(config overlay-editors)
    echo "overlay-editors=$was *.draft" >"$M/.etcd/config" && echo hidden >"$M/x.draft" && same "$(cat "$M/x.draft")" hidden &&
        same "$(value x.draft)" "" && rm "$M/x.draft" && echo "overlay-editors=$was" >"$M/.etcd/config" && echo seen >"$M/x.draft" &&
        same "$(value x.draft)" seen && echo "overlay-temporary=new-????" >"$M/.etcd/config" || return 1
    (umask 077 && set -C && echo t >"$M/new-a1b2") && same "$(value new-a1b2)" "" && mv "$M/new-a1b2" "$M/newer" && same "$(value newer)" t
}
config_overlay() { echo overlay=off >"$M/.etcd/config" && echo t >"$M/t~" && same "$(value t~)" t && echo overlay=on >"$M/.etcd/config"; }

quota() { stat -f -c '%b %S' "$M" | awk '{ printf "%.0f", $1 * $2 }'; }
free() { stat -f -c '%a' "$M"; }
df_quota() {
    local want=67108864 before
    [ "$B" = etcd ] && want=2147483648 # 3.4 does not tell its own
    before=$(free) && same "$(quota)" $want && head -c 1000000 /dev/urandom >"$M/big" && await 5 less_free "$before" && timeout 5 df "$M"
}
less_free() { [ "$(free)" -lt "$1" ]; }
df_alarm() {
    while head -c 1000000 /dev/urandom | ctl put "fill/$((++n))" >/dev/null 2>&1; do [ "$n" -lt 120 ] || break; done
    ctl alarm list | grep NOSPACE && await 5 none_free && ! [ "$(quota)" = 0 ]
}
none_free() { [ "$(free)" = 0 ]; }

linear() { # one descriptor, another value: a pinned handle would go on with the old one
    ctl put lin 1111 && exec 7<"$I/lin" && same "$(dd bs=4 count=1 <&7 2>/dev/null)" 1111 && ctl put lin 2222 &&
        same "$(python3 -c 'import os; print(os.pread(7, 4, 0).decode())')" 2222
    local rc=$?
    exec 7<&-
    return $rc
}
pinned() {
    ctl put lin 1111 && exec 7<"$M/lin" && same "$(dd bs=4 count=1 <&7 2>/dev/null)" 1111 && ctl put lin 2222 &&
        same "$(python3 -c 'import os; print(os.pread(7, 4, 0).decode())')" 1111
    local rc=$?
    exec 7<&-
    return $rc
}
cached() { # reads need no server call, and follow the watch
    ctl put c 1 && await 5 same_cached 1 && local a b && a=$(calls) && for _ in 1 2 3 4 5 6 7 8; do cat "$I/c" >/dev/null; done && b=$(calls) &&
        [ "$((b - a))" -lt 4 ] && ctl put c 2 && await 5 same_cached 2
}
same_cached() { [ "$(cat "$I/c")" = "$1" ]; }
calls() { grep -o '"calls": {[^}]*' "$I/.etcd/status" | grep -o '"total": [0-9]*' | cut -d' ' -f2; }
commit_write() { # each write is a revision, at once
    local before; before=$(revision)
    python3 - "$I/cw" <<'PY' && same "$(value cw)" "onetwo" && [ "$(($(revision) - before))" = 2 ]
import os, subprocess, sys
f = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY, 0o644)
os.write(f, b"one")
assert open(sys.argv[1]).read() == "one"
os.write(f, b"two")
PY
}
conflict() {
    ctl put cf old >/dev/null
    python3 - "$I/cf" "$EP" <<'PY'
import errno, os, subprocess, sys
path, ep = sys.argv[1:]
def other(v): subprocess.run(["etcdctl", "--endpoints=" + ep, "put", "cf", v], check=True, stdout=subprocess.DEVNULL, timeout=20)
def save(v):
    with open(path, "w") as f: f.write(v)
def fails(what):
    try: what()
    except OSError as e: assert e.errno == errno.ESTALE, e
    else: raise SystemExit("no ESTALE")
def in_place():
    f = os.open(path, os.O_WRONLY); os.ftruncate(f, 0); os.write(f, b"in place")
    try: os.close(f)
    finally: pass
def by_rename():
    t = os.path.dirname(path) + "/.cf.a1B2c3"
    f = os.open(t, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600); os.write(f, b"renamed"); os.close(f)
    try: os.rename(t, path)
    except OSError: os.unlink(t); raise
def read(): return open(path).read().strip()
assert read() == "old"
save("mine")                       # nobody was faster
save("mine again")                 # own commits count as read
other("theirs"); fails(lambda: save("lost")); assert read() == "theirs"
save("after reading")              # reading again makes peace
other("theirs 2"); fails(in_place); assert read() == "theirs 2"; in_place()
other("theirs 3"); fails(by_rename); assert read() == "theirs 3"; by_rename(); assert read() == "renamed"
PY
}
new_file() { echo 1 >"$I/cf-new" && same "$(value cf-new)" 1 && echo 2 >"$I/cf-new" && same "$(value cf-new)" 2; }
strict() { # no server, no answer; without the option the value in memory
    ctl put st 1 && same "$(cat "$I/st")" 1 && same "$(cat "$M/st")" 1 && server_kill || return 1
    same "$(timeout 20 cat "$M/st")" 1 && ! timeout 20 cat "$I/st"
    local rc=$?
    server_start && return $rc
}
remount() { [ -n "${I:-}" ] && unmount_at "$I"; I=$M.$1 && mount_at "$I" "$2"; }

run() {
    I=''
    n=0
    check "config: text in, text out" config_text
    check "config: the overlay's lists" config_lists
    check "config: overlay=off" config_overlay
    check "a handle is pinned" pinned
    check "df shows the quota" df_quota
    remount 1 linear && check "linear" linear
    remount 2 cached && check "cached" cached
    remount 3 commit=write && check "commit=write" commit_write
    remount 4 conflict=fail && check "conflict=fail" conflict && check "conflict=fail: new files" new_file
    remount 5 strict,timeout=2 && check "strict" strict
    check "df shows a full store" df_alarm
}
SERVER_OPTIONS="--quota-backend-bytes=67108864"
mount_main run
