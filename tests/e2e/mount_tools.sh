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
# More than one request holds: renameat says EXDEV, and mv copies.
mv_big() {
    local i
    mkdir -p "$M/big/sub" && for i in 1 2 3; do head -c 900000 /dev/urandom >"$M/big/sub/$i" || return 1; done
    (cd "$M/big/sub" && sha256sum 1 2 3) >"$T/big.sum" && timeout 60 mv "$M/big" "$M/big2" || return 1
    ! test -e "$M/big" && (cd "$M/big2/sub" && sha256sum --quiet -c "$T/big.sum") && same "$(ctl get big/ --prefix --keys-only)" ""
}
# Whatever is in /etc as it is: modes that are not 0644, names with dots. What does not fit into a key is left out.
rsync_etc() { timeout 200 rsync -rt --checksum --max-size=1000k -q --no-links /etc/ "$M/etc2/" && timeout 60 diff -r <(cd /etc && find . -type f -size -1000k -exec sha256sum {} + | sort) <(cd "$M/etc2" && find . -type f -exec sha256sum {} + | sort); }
# What rsync and sed do to their temporary names: it never fails, whatever the mode.
temporary_modes() {
    python3 - "$M" <<'PY'
import os, sys
d = sys.argv[1]
for name in ".moded.a1B2c3", "sedXy12ab", "moded~", ".moded.swp":
    p = d + "/" + name
    f = os.open(p, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    for mode in 0o755, 0o4711, 0o000, 0o640:
        os.fchmod(f, mode); os.chmod(p, mode)
        assert os.stat(p).st_mode & 0o7777 == mode, (name, oct(mode), oct(os.stat(p).st_mode))
    os.fchown(f, 12, 34); os.chown(p, 12, -1)
    assert (os.stat(p).st_uid, os.stat(p).st_gid) == (12, 34)
    os.utime(p, ns=(10**18, 10**18 + 5)); assert os.stat(p).st_mtime_ns == 10**18 + 5
    os.write(f, b"x"); os.close(f)
os.rename(d + "/.moded.a1B2c3", d + "/moded")
s = os.stat(d + "/moded")
assert s.st_mode & 0o7777 == 0o644 and s.st_uid == os.getuid(), oct(s.st_mode) # dropped when published
for name in "sedXy12ab", "moded~", ".moded.swp", "moded": os.unlink(d + "/" + name)
PY
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
    check "mv of a directory too big for one transaction" mv_big
    check "temporary and editors' files take any mode, owner and time" temporary_modes
    check "rsync -rt --checksum /etc/" rsync_etc
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
