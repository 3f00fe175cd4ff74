#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: a user without privileges mounts through fusermount3, works in the mount, is told of changes by inotify, unmounts, and mounts
# anew over what a killed cairnfs left; others are kept out, root as well. And with allow_other: others may read what the modes say,
# change only what is theirs, and never enter .etcd.
# In a mount namespace of its own, where /dev/fuse and /etc/fuse.conf are as Debian has them, whatever this machine has.
[ -n "${IN_MOUNTS:-}" ] || { unshare --mount true 2>/dev/null || { echo "needs mount namespaces"; exit 77; }; IN_MOUNTS=1 exec unshare --mount "$0" "$@"; }
# shellcheck source=tests/e2e/mount_lib.sh
. "$(dirname "$0")/mount_lib.sh"
helper=$(command -v fusermount3) && [ -u "$helper" ] || { echo "needs fusermount3, setuid root"; exit 77; }
command -v setpriv >/dev/null && getent passwd nobody >/dev/null || { echo "needs setpriv and the user nobody"; exit 77; }
command -v inotifywait >/dev/null || { echo "needs inotifywait"; exit 77; }

U='' UM=''
user() { timeout 20 setpriv --reuid=nobody --regid=nogroup --clear-groups "$@"; }
other() { timeout 20 setpriv --reuid=12345 --regid=12345 --clear-groups "$@"; }
user_pid() { pgrep -o -f "^$U/cairnfs"; }
user_gone() { ! user_pid; }
user_mounted() { user test -d "$UM/.etcd"; }

# What an ordinary Debian has, and what its administrator may allow. Once, for both backends: mounts keep the device busy.
S=$(mktemp -d /tmp/cairn-users.XXXXXX)
mknod -m 666 "$S/fuse" c 10 229 && touch "$S/fuse.conf" && mount --bind "$S/fuse" /dev/fuse && mount --bind "$S/fuse.conf" /etc/fuse.conf ||
    { rm -rf "$S"; echo "cannot make a /dev/fuse that users may open"; exit 77; }
rm -rf "$S" # both live on where they are mounted

unprivileged() {
    ctl put u/key hello >/dev/null && user "$U/cairnfs" "$EP" "$UM" && await 10 user_mounted && same "$(user cat "$UM/u/key")" hello &&
        user sh -c "echo new >$UM/u/new" && same "$(value u/new)" new && same "$(user stat -c %U "$UM/u/new")" nobody &&
        user mv "$UM/u/new" "$UM/u/moved" && user rm "$UM/u/moved" && same "$(value u/moved)" "" || return 1
    ! cat "$UM/u/key" && ! other cat "$UM/u/key"
}
inotify() {
    local rc
    user cat "$UM/u/key" >/dev/null
    user inotifywait -m -e create,close_write,delete --format '%e %f' "$UM/u" >"$T/told" 2>"$T/told.err" &
    local w=$!
    await 10 grep -q established "$T/told.err" && ctl put u/key again >/dev/null && ctl put u/more 1 >/dev/null && ctl del u/more >/dev/null &&
        await 10 grep -q DELETE "$T/told" && same "$(cat "$T/told")" $'CLOSE_WRITE,CLOSE key\nCREATE more\nCLOSE_WRITE,CLOSE more\nDELETE more'
    rc=$?
    kill $w
    return $rc
}
unmounted() { user fusermount3 -u "$UM" && await 10 user_gone && ! mountpoint -q "$UM"; }
killed() { # what is left is dead, and is replaced
    local p
    user "$U/cairnfs" "$EP" "$UM" && await 10 user_mounted && p=$(user_pid) && kill -9 "$p" && await 10 not_running "$p" || return 1
    ! user ls "$UM" && user "$U/cairnfs" "$EP" "$UM" && await 10 user_mounted && same "$(user cat "$UM/u/key")" again && unmounted
}
not_allowed() { ! user "$U/cairnfs" -o allow_other "$EP" "$UM" 2>"$T/err" && grep -q user_allow_other "$T/err" && user_gone; }
allowed() {
    echo user_allow_other >/etc/fuse.conf && user "$U/cairnfs" -o allow_other "$EP" "$UM" && await 10 user_mounted && same "$(other cat "$UM/u/key")" again &&
        ! other sh -c "echo x >$UM/u/key" && ! other ls "$UM/.etcd" && user sh -c "echo mine >$UM/u/key" && same "$(value u/key)" mine && unmounted
}
others_of_root() {
    unmount_at "$M"
    ctl put u/key mine >/dev/null && mount_at "$M" allow_other && same "$(user cat "$M/u/key")" mine && ! user sh -c "echo x >$M/u/key" && ! user sh -c "echo x >$M/u/q" &&
        ! user rm -f "$M/u/key" && ! user ls "$M/.etcd" && ! user setfattr -n user.etcd.ttl -v 5 "$M/u/key" &&
        same "$(value u/key)" mine || return 1
    unmount_at "$M"
    mount_at "$M" allow_other,uid=65534,gid=65534,umask=027 && user sh -c "echo theirs >$M/u/key" && same "$(value u/key)" theirs &&
        same "$(user stat -c '%U %a' "$M/u/key")" "nobody 640" && ! other cat "$M/u/key"
}

run() {
    local p
    U=$(mktemp -d /tmp/cairn-users.XXXXXX) UM=$U/mnt
    chmod 755 "$U" && cp "$CAIRNFS" "$U/cairnfs" && chmod 755 "$U/cairnfs" && mkdir "$UM" && chown nobody "$UM" && : >/etc/fuse.conf
    check "a user without privileges mounts" unprivileged
    check "and is told of changes" inotify
    check "and unmounts" unmounted
    check "and mounts over what a killed one left" killed
    check "allow_other needs leave" not_allowed
    check "allow_other with leave" allowed
    check "allow_other of root" others_of_root
    umount -l "$UM" 2>/dev/null
    for p in $(pgrep -f "^$U/cairnfs"); do kill "$p"; done
    await 10 user_gone
    rm -rf --one-file-system "$U"
}
mount_main run
