#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: a directory with user.etcd.ttl gives each file created in it, however it is created, a lease of its own; with
# user.etcd.keepalive a file outlives its time to live as long as the mount lives, or as long as it is open here, and no longer.
# shellcheck source=tests/e2e/mount_lib.sh
. "$(dirname "$0")/mount_lib.sh"

get() { getfattr --only-values -n "user.etcd.$1" "$2" 2>/dev/null; }
set_to() { setfattr -n "user.etcd.$1" -v "$2" "$3"; }
lease() { field "$1" Lease; }
there() { [ -n "$(ctl get "$1" --keys-only)" ]; }
gone() { ! there "$1"; }

given() {
    local f leases
    mkdir "$M/d" && set_to ttl 1000 "$M/d" && same "$(get ttl "$M/d")" 1000 || return 1
    echo 1 >"$M/d/echo" && (set -C && echo 2 >"$M/d/excl") && cp "$M/d/echo" "$M/d/cp" && echo 3 >>"$M/d/append" || return 1
    python3 -c 'import os, sys, tempfile
d = sys.argv[1]; f, t = tempfile.mkstemp(dir=d); os.write(f, b"4"); os.close(f); os.rename(t, d + "/renamed")' "$M/d" || return 1
    for f in echo excl cp append renamed; do same "$(get ttl "$M/d/$f")" 1000 || { echo "$f"; return 1; }; done
    leases=$(for f in echo excl cp append renamed; do lease d/$f; done | sort -u | wc -l)
    same "$leases" 5 && same "$(ctl lease list | tail -n +2 | wc -l)" 5 && echo 5 >"$M/d/echo" && same "$(get ttl "$M/d/echo")" 1000 &&
        mkdir "$M/d/sub" && echo 6 >"$M/d/sub/none" && same "$(lease d/sub/none)" 0 &&
        setfattr -x user.etcd.ttl "$M/d" && echo 7 >"$M/d/later" && same "$(lease d/later)" 0
}
kept_by_mount() {
    mkdir "$M/k" && set_to ttl 2 "$M/k" && set_to keepalive mount "$M/k" && same "$(get keepalive "$M/k")" mount &&
        echo 1 >"$M/k/kept" && same "$(get keepalive "$M/k/kept")" mount && echo 2 >"$M/k/lost" && set_to keepalive none "$M/k/lost" || return 1
    mv "$M/k/kept" "$M/k/kept2" && await 20 gone k/lost && there k/kept2 && mount_at "$M.2" "" && set_to ttl 2 "$M.2/k" &&
        set_to keepalive mount "$M.2/k" && echo 3 >"$M.2/k/other" || return 1
    unmount_at "$M.2"
    await 20 gone k/other && there k/kept2 && same "$(cat "$M/k/kept2")" 1
}
kept_while_open() {
    echo 1 >"$M/o" && set_to ttl 2 "$M/o" && set_to keepalive open "$M/o" && same "$(get keepalive "$M/o")" open || return 1
    exec 8<"$M/o"
    echo 1 >"$M/free" && set_to ttl 2 "$M/free" && await 20 gone free && await 20 test ! -e "$M/free" || return 1
    there o && same "$(cat <&8)" 1 || { exec 8<&-; return 1; }
    exec 8<&-
    await 20 gone o && await 10 test ! -e "$M/o"
}
refused() {
    echo 1 >"$M/plain"
    ! set_to keepalive mount "$M/plain" 2>/dev/null && ! set_to keepalive ever "$M/d" 2>/dev/null && ! set_to ttl -1 "$M/d" 2>/dev/null &&
        set_to keepalive none "$M/plain" && same "$(get keepalive "$M/plain")" none
}
# A creation that is refused leaves no lease behind.
no_orphans() {
    local before
    set_to ttl 777 "$M/d" && before=$(ctl lease list | tail -n +2 | wc -l) && mount_at "$M.3" "" && touch "$M.3/d/there" || return 1
    for i in 1 2 3; do (set -C && echo x >"$M/d/there") 2>/dev/null && return 1; done
    await 10 eval '[ "$(ctl lease list | tail -n +2 | wc -l)" -le '"$before"' ]' # others may have ended
}
run() {
    check "files created in a directory with a time to live" given
    check "what is refused" refused
    check "a lease kept alive by the mount" kept_by_mount
    check "a lease kept alive while the file is open" kept_while_open
    check "a refused creation leaves no lease" no_orphans
}
command -v setfattr >/dev/null || { echo "needs setfattr"; exit 77; }
mount_main run
