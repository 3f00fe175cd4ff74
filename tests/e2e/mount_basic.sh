#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: keys are files with the right bytes, names and sizes in both directions; directories, their markers, rename and removal
# do what a local file system does; each error is the one of the table; a second mount sees the same.
# shellcheck source=tests/e2e/mount_lib.sh
. "$(dirname "$0")/mount_lib.sh"

reads() {
    ctl put app/db/host h1 >/dev/null && ctl put app/name n >/dev/null || return 1
    same "$(cat "$M/app/db/host")" h1 && same "$(stat -c %s "$M/app/db/host")" 2 && same "$(ls "$M/app" | tr '\n' ' ')" "db name "
}
appears_and_goes() {
    ctl put later/x 1 >/dev/null
    await 5 test -f "$M/later/x" || return 1
    ctl put later/x 22 >/dev/null
    same "$(cat "$M/later/x")" 22 || return 1
    await 5 eval '[ "$(stat -c %s "$M/later/x")" = 2 ]' || return 1
    ctl del later/x >/dev/null
    await 5 eval '! test -e "$M/later"'
}
writes() { echo hello >"$M/w" && same "$(value w)" hello && echo more >>"$M/w" && same "$(value w | tr '\n' ' ')" "hello more  "; }
odd_names() {
    ctl put /registry/a 1 >/dev/null && ctl put a//b 2 >/dev/null && ctl put "x%y" 3 >/dev/null && ctl put odd/.value 4 >/dev/null
    ctl put odd/.. 5 >/dev/null && ctl put "odd/$(printf 'tab\there')" 6 >/dev/null
    same "$(cat "$M/%/registry/a")" 1 && same "$(cat "$M/a/%/b")" 2 && same "$(cat "$M/x%25y")" 3 &&
        same "$(cat "$M/odd/%2Evalue")" 4 && same "$(cat "$M/odd/%2E%2E")" 5 && same "$(cat "$M/odd/tab%09here")" 6 &&
        ! test -e "$M/x%79y" && ! touch "$M/bad%41" 2>/dev/null
}
key_and_directory() {
    ctl put kd v >/dev/null && same "$(cat "$M/kd")" v && ctl put kd/child c >/dev/null || return 1
    await 5 test -d "$M/kd" && same "$(cat "$M/kd/.value")" v && same "$(cat "$M/kd/child")" c || return 1
    echo w >"$M/kd/.value" && same "$(value kd)" w && ctl del kd/child >/dev/null && await 5 test -f "$M/kd"
}
directories() {
    mkdir "$M/d" && same "$(ctl get d/ --keys-only | head -n 1)" d/ && rmdir "$M/d" && same "$(ctl get d/ --keys-only)" "" &&
        mkdir "$M/d" && echo 1 >"$M/d/f" && ! rmdir "$M/d" 2>/dev/null && same "$(value d/f)" 1 && ! mkdir "$M/d" 2>/dev/null &&
        rm -r "$M/d" && same "$(ctl get d --prefix --keys-only)" "" && ! test -e "$M/d"
}
rmdir_is_never_recursive() {
    mkdir "$M/nr" && ctl put nr-other 1 >/dev/null && ctl put nr/hidden 2 >/dev/null
    ! rmdir "$M/nr" 2>/dev/null && same "$(value nr/hidden)" 2 && same "$(value nr-other)" 1
}
renames() {
    echo one >"$M/r1" && echo two >"$M/r2" && mv "$M/r1" "$M/r2" && same "$(value r2)" one && same "$(value r1)" "" &&
        same "$(cat "$M/r2")" one && ! test -e "$M/r1" && mv "$M/r2" "$M/r1" && mv -n "$M/r1" "$M/w2" && same "$(value w2)" one
}
rename_is_one_revision() {
    local before
    echo x >"$M/rn1" && before=$(revision) && mv "$M/rn1" "$M/rn2" && same "$(($(revision) - before))" 1
}
rename_directory() {
    local before i
    mkdir -p "$M/rd/sub" && for i in 1 2 3; do echo "$i" >"$M/rd/f$i"; done && echo s >"$M/rd/sub/s" && before=$(revision) &&
        mv "$M/rd" "$M/rdnew" && same "$(($(revision) - before))" 1 && same "$(cat "$M/rdnew/f2" "$M/rdnew/sub/s" | tr '\n' ' ')" "2 s " &&
        ! test -e "$M/rd" && same "$(ctl get rd/ --prefix --keys-only)" "" && same "$(value rdnew/sub/s)" s
}
exchange() {
    echo 1 >"$M/e1" && echo 2 >"$M/e2" && python3 - "$M/e1" "$M/e2" <<'P' && same "$(value e1)" 2 && same "$(value e2)" 1
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
sys.exit(libc.renameat2(-100, sys.argv[1].encode(), -100, sys.argv[2].encode(), 2))
P
}
errors() {
    python3 - "$M" <<'P'
import errno, os, sys
m = sys.argv[1]
def expect(e, f, *a):
    try:
        f(*a)
    except OSError as x:
        assert x.errno == e, (f, a, errno.errorcode[x.errno], errno.errorcode[e])
        return
    assert False, ("no error", f, a)
open(m + "/there", "w").write("x")
expect(errno.ENOENT, open, m + "/absent")
expect(errno.EEXIST, os.open, m + "/there", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
expect(errno.EPERM, os.symlink, "a", m + "/link")
expect(errno.EPERM, os.link, m + "/there", m + "/hard")
expect(errno.EPERM, os.mkfifo, m + "/fifo")
expect(errno.EPERM, os.chmod, m + "/there", 0o600)
os.chmod(m + "/there", 0o644)
expect(errno.EISDIR, os.unlink, m) if False else None
os.mkdir(m + "/full"); open(m + "/full/x", "w").write("1")
expect(errno.ENOTEMPTY, os.rmdir, m + "/full")
expect(errno.EEXIST, os.mkdir, m + "/full")
expect(errno.EEXIST, os.mkdir, m + "/there")
f = os.open(m + "/big", os.O_CREAT | os.O_WRONLY)
os.write(f, b"x" * 1000000)
expect(errno.EFBIG, os.write, f, b"y" * 1000000)
expect(errno.EFBIG, os.close, f)  # a part does not stand for the whole
assert not os.path.exists(m + "/big")
expect(errno.EFBIG, os.truncate, m + "/there", 1 << 40)
f = os.open(m + "/there", os.O_WRONLY)
expect(errno.EFBIG, os.pwrite, f, b"z", 1 << 30)
os.ftruncate(f, 0); os.write(f, b"smaller"); os.close(f)
assert open(m + "/there").read() == "smaller"
P
}
partial_write() {
    printf 0123456789 >"$M/pw" && printf AB | dd of="$M/pw" bs=2 seek=2 conv=notrunc 2>/dev/null && same "$(value pw)" 0123AB6789 &&
        truncate -s 4 "$M/pw" && same "$(value pw)" 0123
}
# Two writers of different places: neither undoes the other's.
rebase() {
    printf 0123456789 >"$M/rb"
    python3 -c 'import subprocess, sys
f = open(sys.argv[1], "r+b", 0)
f.write(b"A")
subprocess.run(["etcdctl", "--endpoints", sys.argv[2], "put", "rb", "01234567XX"], check=True)
f.close()' "$M/rb" "$EP" || return 1
    same "$(value rb)" A1234567XX
}
pinned() { # a handle never mixes two values
    ctl put pin AAAA >/dev/null
    exec 7<"$M/pin"
    ctl put pin BBBBBBBB >/dev/null
    same "$(cat <&7)" AAAA || return 1
    exec 7<&-
    same "$(cat "$M/pin")" BBBBBBBB
}
append_concurrently() { # O_APPEND is atomic, across mounts too
    local i
    for i in $(seq 20); do echo "a$i" >>"$M/ap" & echo "b$i" >>"$M.2/ap" & done
    wait
    same "$(value ap | grep -c .)" 40 && same "$(value ap | sort -u | grep -c .)" 40
}
exclusive() { # O_EXCL: one of many wins
    local i won=0
    for i in $(seq 10); do (set -C; echo "$i" >"$M/ex") 2>/dev/null && echo w; (set -C; echo "$i" >"$M.2/ex") 2>/dev/null && echo w; done >"$T/won"
    won=$(wc -l <"$T/won")
    same "$won" 1
}
second_mount_sees() { echo 12345 >"$M/sm" && same "$(cat "$M.2/sm")" 12345 && await 5 eval '[ "$(stat -c %s "$M.2/sm")" = 6 ]' && rm "$M.2/sm" && await 5 eval '! test -e "$M/sm"'; }
prefix_mount() {
    ctl put /pre/fix/x/y z >/dev/null
    mount_at "$M.3" "" "$EP:/pre/fix/" && same "$(cat "$M.3/x/y")" z && echo n >"$M.3/new" && same "$(value /pre/fix/new)" n
}
xattrs() {
    echo t >"$M/xa" && setfattr -n user.etcd.ttl -v 500 "$M/xa" && same "$(getfattr --only-values -n user.etcd.ttl "$M/xa")" 500 &&
        [ "$(field xa Lease)" != 0 ] && echo new >"$M/xa" && [ "$(field xa Lease)" != 0 ] && same "$(getfattr -d "$M/xa" 2>/dev/null | grep -c ttl)" 1 &&
        same "$(getfattr --only-values -n user.etcd.key "$M/xa" 2>/dev/null)" xa && setfattr -x user.etcd.ttl "$M/xa" && same "$(field xa Lease)" 0 &&
        same "$(getfattr --only-values -n user.etcd.rev "$M/xa")" "$(field xa ModRevision)"
}
expiry() { echo t >"$M/expires" && setfattr -n user.etcd.ttl -v 1 "$M/expires" && await 10 eval '! test -e "$M/expires"'; }
control() {
    grep -q '"connected": true' "$M/.etcd/status" && same "$(cat "$M/.etcd/revision")" "$(revision)" && grep -q overlay=on "$M/.etcd/config" &&
        ! ls -a "$M" | grep -q '^\.etcd$' && ctl put ck/x 1 >/dev/null && same "$(cat "$M/.etcd/keys/ck%2Fx")" 1 &&
        echo 2 >"$M/.etcd/keys/ck%2Fx" && same "$(value ck/x)" 2 && echo 3 >"$M/.etcd/keys/ck%2Fnew" && same "$(value ck/new)" 3 &&
        rm "$M/.etcd/keys/ck%2Fnew" && same "$(value ck/new)" "" &&
        for i in $(seq 600); do printf 'put cl/%s %s\n' "$i" "$i"; done | split -l 100 --filter='(echo; cat; echo; echo) | etcdctl --endpoints="'"$EP"'" txn' >/dev/null &&
        same "$(ls "$M/.etcd/keys" | grep -c '^cl%2F')" 600
}
events_stream() {
    local pid
    cat "$M/.etcd/events/.all" >"$T/stream" &
    pid=$!
    await 5 grep -q '"handles"' "$M/.etcd/status"
    await 10 eval 'ctl put ev/x 1 >/dev/null; grep -q "\"key\":\"ev/x\"" "$T/stream"'
    kill "$pid" && await 5 not_running "$pid"
}
events_of_value() { # of the key ev/dv, which is a directory too; not of what is in it
    local pid
    ctl put ev/dv/in 1 >/dev/null && ctl put ev/dv 0 >/dev/null && await 10 test -e "$M/ev/dv/.value" || return 1
    cat "$M/.etcd/events/ev/dv/.value" >"$T/stream" &
    pid=$!
    await 10 eval 'ctl put ev/dv/in 2 >/dev/null; ctl put ev/dv 1 >/dev/null; grep -q "\"key\":\"ev/dv\"" "$T/stream"'
    kill "$pid" && await 5 not_running "$pid" && ! grep -q ev/dv/in "$T/stream"
}
wait_file() {
    local pid
    timeout 10 cat "$M/.etcd/wait/wt" >"$T/wait" &
    pid=$!
    await 10 eval 'ctl put wt 1 >/dev/null; not_running '"$pid" && grep -q '"key":"wt"' "$T/wait"
}
etcd_mount() { # the form mount(8) uses
    mkdir -p "$M.4" && timeout 20 "$CAIRNFS" "$EP" "$M.4" -o rw,noauto,_netdev,nosuid && FS_PIDS="$FS_PIDS $(pgrep -f "$CAIRNFS $EP $M.4" | tr '\n' ' ')" &&
        same "$(cat "$M.4/w" | head -n 1)" hello && umount "$M.4"
}
refusals() {
    ! timeout 5 "$CAIRNFS" nonsense "$M.5" 2>"$T/err" && grep -q host:port "$T/err" && mkdir -p "$M.5" &&
        ! timeout 10 "$CAIRNFS" -o timeout=1 127.0.0.1:1 "$M.5" 2>"$T/err" && grep -q "no endpoint answered" "$T/err" &&
        ! timeout 5 "$CAIRNFS" -o uid=x "$EP" "$M.5" 2>"$T/err"
}
read_only() { mount_at "$M.6" ro && same "$(cat "$M.6/w" | head -n 1)" hello && ! touch "$M.6/n" 2>/dev/null && ! echo x 2>/dev/null >"$M.6/w"; }

run() {
    check "keys read as files" reads
    check "keys made and deleted elsewhere appear and go" appears_and_goes
    check "files written are keys" writes
    check "odd keys have names, other spellings none" odd_names
    check "a key that is also a directory" key_and_directory
    check "mkdir, rmdir, rm -r" directories
    check "rmdir never removes keys" rmdir_is_never_recursive
    check "rename" renames
    check "rename is one revision" rename_is_one_revision
    check "rename of a directory is one revision" rename_directory
    check "RENAME_EXCHANGE" exchange
    check "errors are the right ones" errors
    check "writing in place, truncating" partial_write
    check "writing in place over news" rebase
    check "an open file stays at its revision" pinned
    mount_at "$M.2" ""
    check "a second mount sees changes" second_mount_sees
    check "O_APPEND from two mounts loses nothing" append_concurrently
    check "O_EXCL from two mounts: one wins" exclusive
    check "a mount below a prefix" prefix_mount
    check "TTL and others as extended attributes" xattrs
    check "a lease that expires removes the file" expiry
    check "the control tree" control
    check "a stream of events" events_stream
    check "a stream of a directory's own value" events_of_value
    check "waiting for a change" wait_file
    check "mount(8)'s way of calling" etcd_mount
    check "refusals are sentences" refusals
    check "a read-only mount" read_only
}
mount_main run
