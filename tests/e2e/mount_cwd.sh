#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: a directory that exists stays attached for those who are in it or have something mounted on it, whatever is told of its name:
# made by this mount or by another, removed and made again, implicit and then with a marker, with keys coming and going in it.
# getcwd(2) says ENOENT when it is cut off, and git, make and every configure script end there.
# shellcheck source=tests/e2e/mount_lib.sh
. "$(dirname "$0")/mount_lib.sh"

# Makes and enters directories, and asks where it is for some milliseconds: the event of the mkdir comes meanwhile.
own_mkdir() {
    timeout 100 python3 - "$1" "${2:-150}" <<'PY'
import os, sys, time
top, rounds, lost = sys.argv[1] + "/own", int(sys.argv[2]), []
os.makedirs(top, exist_ok=True)
for i in range(rounds):
    d = "%s/d%d" % (top, i % 5)   # removed and made again, too
    if os.path.isdir(d):
        os.chdir(top)
        os.unlink(d + "/f"); os.rmdir(d)
    os.mkdir(d); os.chdir(d)
    try:
        for k in range(20):
            assert os.getcwd() == os.path.realpath(d)
            if k == 5: open("f", "w").write("x")
            time.sleep(0.0003)
    except OSError as e:
        lost.append((i, k, e.strerror))
print(len(lost), "of", rounds, lost[:3])
sys.exit(len(lost) > 0)
PY
}

# stay DIRECTORY COMMAND...: somebody is in DIRECTORY while COMMAND runs, and asks all the time.
stay() {
    local d=$1 pid rc
    shift
    rm -f "$T/stop"
    timeout 60 python3 - "$d" "$T" <<'PY' &
import os, sys, time
d, t = sys.argv[1:]
os.chdir(d)
open(t + "/there", "w").close()
n = 0
while not os.path.exists(t + "/stop"):
    assert os.getcwd() == os.path.realpath(d)
    os.stat(".")
    n += 1
    time.sleep(0.0002)
os.listdir(".")
assert n > 5
PY
    pid=$!
    await 10 test -e "$T/there" && "$@"
    rc=$?
    touch "$T/stop"
    wait $pid && [ $rc = 0 ]
    rc=$?
    rm -f "$T/there"
    return $rc
}
# On the other mount, whose commits are this one's news.
come_and_go() {
    local i
    for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
        echo $i >"$M.2/$1/a" && mkdir "$M.2/$1/sub" && echo $i >"$M.2/$1/sub/b" && rm "$M.2/$1/a" && rm "$M.2/$1/sub/b" && rmdir "$M.2/$1/sub" || return 1
    done
}
ours_others_touch() { mkdir "$M/ours" && stay "$M/ours" come_and_go ours; }
theirs() { mkdir "$M.2/theirs" && await 10 test -d "$M/theirs" && stay "$M/theirs" come_and_go theirs; }
by_key() { ctl put "keys/$1" x && ctl put keys/y y && ctl put keys/ "" && ctl del "keys/$1" && ctl put "keys/$1" x && ctl del keys/ && ctl put keys/ "" && ctl del keys/y; } >/dev/null
implicit_explicit() { ctl put keys/first 1 >/dev/null && await 10 test -d "$M/keys" && stay "$M/keys" by_key x && same "$(cd "$M/keys" && echo *)" "first x"; }
# The same with somebody who listens: then each change is made once more, for inotify.
with_watcher() {
    local pid rc
    inotifywait -q -m "$M" "$M/ours" "$M/theirs" "$M/keys" >"$T/heard" 2>&1 &
    pid=$!
    await 10 grep -qs inotify "/proc/$pid/fdinfo/3" && stay "$M/ours" come_and_go ours && stay "$M/theirs" come_and_go theirs && stay "$M/keys" by_key z
    rc=$?
    await 10 grep -q DELETE "$T/heard" || rc=1
    kill $pid
    wait $pid 2>/dev/null
    return $rc
}
mounted_on() {
    local i rc=0
    mkdir -p "$T/below" && touch "$T/below/mark" && mkdir "$M/at" && mount --bind "$T/below" "$M/at" || return 1
    for i in 1 2 3; do
        echo $i >"$M.2/at/k$i" && ctl put at/ "" && ctl put "at/l$i" $i && rm "$M.2/at/k$i" && test -e "$M/at/mark" || { rc=1; break; }
    done
    await 5 test -e "$M.2/at/l3" || rc=1
    umount "$M/at" && await 5 test -e "$M/at/l3" && [ $rc = 0 ]
}
removed_elsewhere() {
    mkdir "$M/gone" && (cd "$M/gone" && rmdir "$M.2/gone" && await 10 bash -c "! test -e '$M/gone'" && ! ls "$M/gone" 2>/dev/null && mkdir "$M/gone" && test -d "$M/gone" && cd "$M/gone" && touch f && ls | grep -q f)
}

nodes() { sed -n 's/.*"nodes": \([0-9]*\),.*/\1/p' "$M/.etcd/status"; }
forgotten() { # directories that come and go elsewhere, and are looked at here, are not kept in memory
    local i before
    mkdir "$M/churn" && ls "$M/churn" && before=$(nodes) || return 1
    for i in $(seq 300); do echo "put churn/d$i/x 1"; done | split -l 100 --filter='(echo; cat; echo; echo) | etcdctl --endpoints="'"$EP"'" txn' >/dev/null
    await 10 test -d "$M/churn/d300" && same "$(find "$M/churn" -type f | wc -l)" 300 && [ "$(nodes)" -gt $((before + 300)) ] || return 1
    ctl del churn/d --prefix >/dev/null
    await 15 eval '[ "$(nodes)" -lt '$((before + 30))' ]' || { echo "before $before, now $(nodes)"; cat "$M/.etcd/status"; return 1; }
}
run() {
    check "own mkdir, also of a name just removed" own_mkdir "$M"
    mount_at "$M.2" ""
    check "own mkdir seen by a second mount" own_mkdir "$M"
    check "keys come and go, from elsewhere, in a directory made here" ours_others_touch
    check "the same in a directory made elsewhere" theirs
    check "an implicit directory gets a marker and loses it" implicit_explicit
    command -v inotifywait >/dev/null && check "all that, with a watcher" with_watcher
    check "a mount on a directory stays" mounted_on
    check "removed elsewhere it is gone, and can be made again" removed_elsewhere
    check "what came and went is forgotten" forgotten
    mount_at "$M.3" dirmarkers=off
    check "dirmarkers=off: own mkdir" own_mkdir "$M.3" 60
    check "dirmarkers=off: keys come and go" stay "$M.3/ours" come_and_go ours
}
mount_main run
