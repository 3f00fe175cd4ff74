#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: a real tree of files goes in and comes out unchanged with the tools people use; what sets modes, owners and times works with
# meta=ignore and exits 0; a second mount and etcdctl see the same bytes, also after a SIGKILL of the first.
# shellcheck source=tests/e2e/mount_lib.sh
. "$(dirname "$0")/mount_lib.sh"

# The material: the regular files of /etc that fit into a key, with their directories.
material() {
    mkdir -p "$T/etc"
    (cd /etc && find . -type f -readable -size -1000k -print0 | head -z -n 600 | cpio -0pdm --quiet "$T/etc" 2>/dev/null ||
        tar c --null -T <(find . -type f -readable -size -1000k -print0 | head -z -n 600) 2>/dev/null | tar x -C "$T/etc")
    find "$T/etc" -type f -exec chmod 644 {} +
    find "$T/etc" -type d -empty -delete
    [ "$(find "$T/etc" -type f | wc -l)" -gt 50 ]
}
same_tree() { timeout 120 diff -r "$1" "$2"; }

cp_r() { timeout 200 cp -r "$T/etc/." "$M/etc/" && same_tree "$T/etc" "$M/etc"; }
find_it() { same "$(cd "$M/etc" && find . -type f | sort)" "$(cd "$T/etc" && find . -type f | sort)"; }
grep_it() { same "$(cd "$M/etc" && grep -rl root . | sort)" "$(cd "$T/etc" && grep -rl root . | sort)"; }
du_and_wc() { same "$(cd "$M/etc" && find . -type f -printf '%s %p\n' | sort)" "$(cd "$T/etc" && find . -type f -printf '%s %p\n' | sort)"; }
tar_d() { (cd "$M" && tar c etc) | (cd "$T" && tar d 2>&1 | grep -v "Mod time\|Mode differs\|Uid differs\|Gid differs" | grep . && exit 1; exit 0); }
tar_out() { mkdir -p "$T/out" && (cd "$M" && tar c etc) | tar x -C "$T/out" && same_tree "$T/etc" "$T/out/etc"; }
rsync_in() { timeout 200 rsync -rt --checksum "$T/etc/" "$M/rsynced/" && same_tree "$T/etc" "$M/rsynced"; }
rsync_again() { local before; before=$(revision); timeout 100 rsync -r --checksum "$T/etc/" "$M/rsynced/" && same "$(revision)" "$before"; }
rsync_out() { timeout 100 rsync -a "$M/etc/" "$T/rsynced/" && same_tree "$T/etc" "$T/rsynced"; }
second_mount() { mount_at "$M.2" "" && same_tree "$T/etc" "$M.2/etc"; }
by_etcdctl() {
    local f
    for f in $(cd "$T/etc" && find . -type f | head -n 20); do
        f=${f#./}
        cmp "$T/etc/$f" <(ctl get "etc/$f" --print-value-only | head -c -1) || return 1
    done
}
after_kill() {
    local i
    echo "last words" >"$M/last" && kill -9 "$FS_FIRST" && await 5 not_running "$FS_FIRST" && umount -l "$M" && mount_at "$M" "" || return 1
    same "$(cat "$M/last")" "last words" && same_tree "$T/etc" "$M/etc"
}
rm_r() { timeout 200 rm -r "$M/rsynced" && same "$(ctl get rsynced --prefix --keys-only --limit 5)" "" && ! test -e "$M/rsynced"; }

ignore() { "$@" 2>"$T/tool.err"; local rc=$?; [ $rc = 0 ] || { echo "$* ended with $rc"; cat "$T/tool.err"; }; return $rc; }
small() { mkdir -p "$T/small/sub" && cp "$T/etc/"*.conf "$T/small/" 2>/dev/null; echo x >"$T/small/sub/x"; chmod 600 "$T/small/sub/x"; chown 1:1 "$T/small/sub/x"; }
cp_a() { ignore timeout 60 cp -a "$T/small" "$I/cp_a" && same_tree "$T/small" "$I/cp_a"; }
cp_p() { ignore cp -p "$T/small/sub/x" "$I/cp_p" && cmp "$T/small/sub/x" "$I/cp_p"; }
rsync_a() { ignore timeout 60 rsync -a "$T/small/" "$I/rsync_a/" && same_tree "$T/small" "$I/rsync_a"; }
tar_x() { mkdir -p "$I/tar_x" && (cd "$T/small" && tar c .) | ignore timeout 60 tar x -C "$I/tar_x" && same_tree "$T/small" "$I/tar_x"; }
install_it() { ignore install -m 600 -o 1 "$T/small/sub/x" "$I/installed" && cmp "$T/small/sub/x" "$I/installed" && ignore install "$T/small/sub/x" "$I/installed"; }
mv_in() { cp -r "$T/small" "$T/moving" && ignore mv "$T/moving" "$I/moved" && same_tree "$T/small" "$I/moved" && ! test -e "$T/moving"; }
mv_within() { ignore mv "$I/moved" "$I/moved2" && same_tree "$T/small" "$I/moved2" && ! test -e "$I/moved"; }
git_it() { # a repository: locks, renames, mmap'ed packs
    (export HOME="$T" GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        cd "$I" && timeout 120 git init -q repo && cd repo && echo 1 >f && git add f && git commit -qm one && echo 2 >>f && git commit -qam two &&
        git gc -q && git fsck --full && same "$(git log --oneline | wc -l)" 2 && git clone -q . "$T/clone" && same "$(cat "$T/clone/f" | tr '\n' ' ')" "1 2 ")
}

run() {
    FS_FIRST=$FS_PID
    check "material" material
    check "cp -r, diff -r" cp_r
    check "find" find_it
    check "grep -r" grep_it
    check "sizes" du_and_wc
    check "tar c | tar d" tar_d
    check "tar c | tar x" tar_out
    check "rsync -rt --checksum" rsync_in
    check "rsync again changes nothing" rsync_again
    check "rsync -a out of it" rsync_out
    check "a second mount sees the same" second_mount
    check "etcdctl sees the same" by_etcdctl
    check "after a SIGKILL of cairnfs" after_kill
    check "rm -r" rm_r
    I=$M.3
    mount_at "$I" meta=ignore
    small
    check "meta=ignore: cp -a" cp_a
    check "meta=ignore: cp -p" cp_p
    check "meta=ignore: rsync -a" rsync_a
    check "meta=ignore: tar x" tar_x
    check "meta=ignore: install" install_it
    check "meta=ignore: mv from another file system" mv_in
    check "meta=ignore: mv of a directory" mv_within
    check "meta=ignore: git" git_it
}
mount_main run
