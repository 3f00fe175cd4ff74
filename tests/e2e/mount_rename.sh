#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: a directory renamed by this mount takes along whoever is in it: working directories at any depth, open files (what is written
# afterwards lands under the new name), files of the overlay, names only being created, watchers, inode identity for bind mounts. Its
# keys move at one revision, however many they are on cairnd (5,000 here: a reader never sees both names or none, a watcher gets
# every event, a second mount follows); on another server a large one is EXDEV, and mv copies. What others do meanwhile is not lost.
# shellcheck source=tests/e2e/mount_lib.sh
. "$(dirname "$0")/mount_lib.sh"

# ---- who is inside

# The steps of a shell that is in a/b/c while a is renamed, and of one in a itself.
inside() { # directory, where it goes, depth below it
    mkdir -p "$M/$1/b/c" "$M/$1/b/empty" && echo sibling >"$M/$1/sibling" && echo deep >"$M/$1/b/c/deep" && cd "$M/$1$3" || return 1
    git init -q . 2>"$T/git" || { cat "$T/git"; return 1; }
    mv "$M/$1" "$M/$2" || return 1
    same "$(pwd -P)" "$(realpath "$M")/$2$3" && same "$(/bin/pwd)" "$(realpath "$M")/$2$3" && ls >/dev/null && ls -la .. >/dev/null || return 1
    echo new >made && same "$(value "$2$3/made")" new && same "$(value "$1$3/made")" "" || return 1
    mkdir sub && echo x >sub/y && same "$(value "$2$3/sub/y")" x || return 1
    git status >/dev/null && git init -q again && test -d "$M/$2$3/again/.git" || return 1
    mv "$M/$2" "$M/$1" && same "$(pwd -P)" "$(realpath "$M")/$1$3" && same "$(cat made)" new && rm -r again sub made .git
}
at_depth_0() { (inside d0 e0 "") && (cd "$M/d0" && same "$(cat sibling)" sibling); }
at_depth_2() { (inside d2 e2 /b/c && same "$(cat ../../sibling)" sibling && same "$(cat deep)" deep); }
into_another() { mkdir "$M/into" && (inside d3 into/d3 /b && same "$(cat ../sibling)" sibling); }
onto_empty() { # a directory that exists gives way; whoever is in that is out
    mkdir "$M/o1" "$M/o2" && echo 1 >"$M/o1/f" && (cd "$M/o1" && mv -T "$M/o1" "$M/o2" && same "$(pwd -P)" "$(realpath "$M")/o2" && same "$(cat f)" 1 && touch g) &&
        same "$(ls "$M/o2" | xargs)" "f g" && ! test -e "$M/o1" && mkdir "$M/o1" && echo 2 >"$M/o1/f" && same "$(cat "$M/o1/f" "$M/o2/f" | xargs)" "2 1" &&
        [ "$(stat -c %i "$M/o1/f")" != "$(stat -c %i "$M/o2/f")" ] && ! mv -T "$M/o1" "$M/o2" 2>/dev/null
}
again_and_again() { # with names that come back
    mkdir "$M/x" && echo x >"$M/x/f" && (
        cd "$M/x" || exit 1
        for i in $(seq 30); do
            mv "$M/x" "$M/y" && same "$(pwd -P)" "$(realpath "$M")/y" && mkdir "$M/x" && echo "$i" >"$M/x/other" && same "$(cat f)" x &&
                same "$(ls)" f && rm -r "$M/x" && mv "$M/y" "$M/x" && same "$(pwd -P)" "$(realpath "$M")/x" && test -e "$M/x/f" || exit 1
        done
    )
}

# ---- open files

open_files() {
    timeout 60 python3 - "$M" <<'PY'
import os, sys
m = sys.argv[1]
os.makedirs(m + "/w/in")
open(m + "/w/in/old", "w").write("0123456789")
open(m + "/w/in/log", "w").write("first\n")
part, whole, app = open(m + "/w/in/old", "r+"), open(m + "/w/in/new", "w"), open(m + "/w/in/log", "a")
dirty = open(m + "/w/in/dirty", "w"); dirty.write("before "); dirty.flush()
reader = open(m + "/w/in/old"); assert reader.read(3) == "012"
listing = os.open(m + "/w/in", os.O_RDONLY)
os.rename(m + "/w", m + "/v")
assert reader.read() == "3456789"
part.seek(2); part.write("XX"); part.flush(); os.fsync(part.fileno()); part.close()
whole.write("whole"); whole.close()
app.write("second\n"); app.close()
dirty.write("after"); dirty.close()
assert sorted(os.listdir(listing)) == ["dirty", "log", "new", "old"], os.listdir(listing)
assert not os.path.exists(m + "/w")
got = {n: open(m + "/v/in/" + n).read() for n in os.listdir(m + "/v/in")}
assert got == {"old": "01XX456789", "new": "whole", "log": "first\nsecond\n", "dirty": "before after"}, got
assert os.fstat(listing).st_ino == os.stat(m + "/v/in").st_ino
PY
    same "$?" 0 && same "$(ctl get --prefix w/ --keys-only)" "" && same "$(value v/in/new) $(value v/in/old)" "whole 01XX456789"
}
excl_lock() { # O_EXCL in a directory that has just been moved, and one made before
    mkdir "$M/lk" && (cd "$M/lk" && set -C && echo a >lock && mv "$M/lk" "$M/lk2" && ! echo b 2>/dev/null >lock && echo c >lock2) &&
        same "$(value lk2/lock) $(value lk2/lock2)" "a c"
}
busy_writers() { # commits under way while it moves: nothing lands under the old name, nothing is lost
    timeout 100 python3 - "$M" <<'PY'
import os, sys, threading
m, stop, bad = sys.argv[1], threading.Event(), []
os.makedirs(m + "/busy0/in")
os.chdir(m + "/busy0/in")
count = [0] * 4
def work(i):
    try:
        while not stop.is_set():
            with open("f%d" % i, "a") as f: f.write("%d\n" % count[i])
            count[i] += 1
            with open("g%d" % i, "w") as f: f.write("%d\n" % count[i])
    except OSError as e:
        bad.append((i, e))
ts = [threading.Thread(target=work, args=(i,)) for i in range(4)]
[t.start() for t in ts]
moved = 0
for k in range(25):
    try:
        os.rename(m + "/busy%d" % moved, m + "/busy%d" % (moved + 1)); moved += 1
    except OSError as e:
        if e.errno != 18: raise        # somebody works in it: mv would copy
stop.set()
[t.join() for t in ts]
assert not bad, bad
assert moved > 5, moved
assert os.getcwd() == os.path.realpath(m + "/busy%d/in" % moved)
for i in range(4):
    assert open("f%d" % i).read() == "".join("%d\n" % k for k in range(count[i])), i
    assert open("g%d" % i).read() == "%d\n" % count[i]
print(moved, count)
left = [d for d in os.listdir(m) if d.startswith("busy") and d != "busy%d" % moved]
assert left == [], left
PY
}
# makers DIR DIR: names are made and removed at once by one mount while the other (or the same) renames the directory above them:
# none lands under an old name, each that was acknowledged is there. Of the same mount none fails. By another one a name may be
# made and move before its maker is told: to it the place is gone.
makers() {
    timeout 100 python3 - "$@" <<'PY'
import errno, os, sys, threading
renamer, maker = sys.argv[1:]
same, stop, bad, made, lost = renamer == maker, threading.Event(), [], [set() for i in range(4)], []
os.makedirs(renamer + "/made0/in/deep")
at = [0]
def work(i):
    n = 0
    while not stop.is_set():
        n += 1
        d, name = (inside if same else f"{maker}/made{at[0]}/in/deep"), f"{i}-{n}"
        try:
            if n % 4 == 0: os.mkdir(f"{d}/{name}")
            else: os.close(os.open(f"{d}/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            made[i].add(name)
            if n % 4 == 1 and same:
                os.rename(f"{d}/{name}", f"{d}/{name}.moved")
                made[i].remove(name), made[i].add(name + ".moved")
            elif n % 4 == 2 and same:
                os.unlink(f"{d}/{name}")
                made[i].remove(name)
        except OSError as e:
            # EEXIST: it was made, but its directory had moved by then, so ESTALE; the kernel tries once more, and finds it.
            (bad if same or e.errno not in (errno.ENOENT, errno.ESTALE, errno.EEXIST) else lost).append((name, e))
os.chdir(renamer + "/made0/in/deep")
inside = "."
if not same: os.listdir(maker + "/made0/in/deep")
ts = [threading.Thread(target=work, args=(i,)) for i in range(4)]
[t.start() for t in ts]
moved = 0
for k in range(40):
    try:
        os.rename(f"{renamer}/made{moved}", f"{renamer}/made{moved + 1}"); moved += 1
        at[0] = moved
    except OSError as e:
        if e.errno != errno.EXDEV: raise  # somebody works in it: mv would copy
    if sum(map(len, made)) > 60: break    # more go by another call, which only one server has
stop.set()
[t.join() for t in ts]
print(moved, sum(map(len, made)), "made,", len(lost), "not")
assert not bad, bad[:5]
assert moved > 2, moved
there = set(os.listdir(f"{renamer}/made{moved}/in/deep"))
told, unsure = set().union(*made), {name for name, e in lost}
assert told <= there <= told | unsure, (told - there, there - told - unsure)
left = [d for d in os.listdir(renamer) if d.startswith("made") and d != f"made{moved}"]
assert left == [], left
PY
}
made_inside() { makers "$M" "$M" && same "$(ctl get --prefix made --keys-only | grep -o '^made[0-9]*/' | sort -u | wc -l)" 1 && ctl del --prefix made >/dev/null; }
made_by_another() { # five times: it is a race, won by a moment
    mount_at "$M.maker" "" || return 1
    for _ in 1 2 3 4 5; do
        makers "$M" "$M.maker" && same "$(ctl get --prefix made --keys-only | grep -o '^made[0-9]*/' | sort -u | wc -l)" 1 || return 1
        ctl del --prefix made >/dev/null
        await 10 eval '! ls -d "$M"/made* "$M.maker"/made*' || return 1
    done
    umount "$M.maker"
}
swap_file() { # a file that is only here goes along
    mkdir "$M/sw" && echo text >"$M/sw/k" && echo swap >"$M/sw/.k.swp" && mv "$M/sw" "$M/sw2" && same "$(cat "$M/sw2/.k.swp")" swap && same "$(value sw2/.k.swp)" "" &&
        same "$(value sw2/k)" text && rm "$M/sw2/.k.swp" && same "$(ls -A "$M/sw2")" k
}
bound() { # a bind mount of a file in it shows what is saved later
    mkdir "$M/bd" && echo 1 >"$M/bd/f" && touch "$T/file" && mount --bind "$M/bd/f" "$T/file" || return 1
    mv "$M/bd" "$M/bd2" && echo 2 >"$M/bd2/f" && same "$(cat "$T/file")" 2
    local rc=$?
    umount "$T/file"
    return $rc
}
watched() { # inotify marks are on inodes: what others change under the new name reaches them
    mkdir "$M/wd" && echo 1 >"$M/wd/f" || return 1
    inotifywait -q -m "$M/wd" >"$T/heard" 2>&1 &
    local pid=$! rc
    await 10 grep -qs inotify "/proc/$pid/fdinfo/3" && mv "$M/wd" "$M/wd2" && ctl put wd2/f 2 >/dev/null && ctl put wd2/g 3 >/dev/null &&
        await 10 grep -q "CREATE g" "$T/heard" && await 10 grep -q "CLOSE_WRITE.* f" "$T/heard"
    rc=$?
    kill $pid
    wait $pid 2>/dev/null
    cat "$T/heard"
    return $rc
}
value_stays() { # the directory's own key is not below it
    ctl put vs own >/dev/null && ctl put vs/k 1 >/dev/null && await 10 test -e "$M/vs/.value" && mv "$M/vs" "$M/vt" && same "$(cat "$M/vs")" own &&
        same "$(cat "$M/vt/k")" 1 && ! test -e "$M/vt/.value" && same "$(value vs) $(value vt/k)" "own 1"
}
unknown_here() { # keys that came and went elsewhere, of which this mount may not have heard
    for i in $(seq 20); do
        ctl put "un$i/kept" 1 >/dev/null && ctl put "un$i/gone" 1 >/dev/null && await 10 test -e "$M/un$i/gone" && ls "$M/un$i" >/dev/null || return 1
        rm "$M.2/un$i/gone" && echo n >"$M.2/un$i/new" && echo c >"$M.2/un$i/kept" && mv "$M/un$i" "$M/um$i" || return 1
        await 5 eval 'same "$(ls "$M/um'$i'" | xargs)" "kept new"' && same "$(cat "$M/um$i/kept" "$M/um$i/new" | xargs)" "c n" && ! test -e "$M/um$i/gone" || return 1
    done
}
by_another() { # no event says that it was a rename: the old names vanish, the new ones appear
    mkdir "$M.2/by" && echo 1 >"$M.2/by/f" && await 10 test -e "$M/by/f" && mv "$M.2/by" "$M.2/bz" && await 10 test -e "$M/bz/f" && await 10 eval '! test -e "$M/by"' && same "$(cat "$M/bz/f")" 1
}
conflicts() { # conflict=fail: what was read before the rename is what is there after it
    mkdir "$M.3/cf" && echo 1 >"$M.3/cf/f" && timeout 20 python3 - "$M.3" <<'PY'
import os, sys
m = sys.argv[1]
assert open(m + "/cf/f").read() == "1\n"
held = open(m + "/cf/f", "r+")
os.rename(m + "/cf", m + "/cg")
open(m + "/cg/f", "w").write("2\n")
os.rename(m + "/cg", m + "/ch")
assert open(m + "/ch/f").read() == "2\n"
try:
    held.write("3\n"); held.flush(); os.fsync(held.fileno())
    held.truncate(0); held.close()
except OSError as e:
    pass
PY
}

# ---- any size

count() { ctl get --prefix "$1" --keys-only | grep -c .; }
fill() { # prefix count
    seq "$2" | sed "s|.*|put $1f& value-&|" | split -l 125 --filter='(echo; cat; echo; echo) | etcdctl --endpoints="'"$EP"'" txn' >/dev/null
}
# Reads both names in one transaction for as long as the rename takes.
reader() {
    timeout 120 python3 - "$EP" "$T" <<'PY'
import base64, json, os, sys, urllib.request, subprocess
ep, t = sys.argv[1:]
n = 0
while not os.path.exists(t + "/stop"):
    out = subprocess.run(["etcdctl", "--endpoints", ep, "txn"], input="\n\nget big/f77 --keys-only\nget moved/f77 --keys-only\n\n\n".replace("\n\nget", "\nget", 1),
                         capture_output=True, text=True).stdout
    seen = [l for l in out.split("\n") if l.endswith("/f77")]
    assert len(seen) == 1, out
    n += 1
print(n, "reads")
PY
}
large_one() {
    local before pid rc
    fill big/ 5000 && same "$(count big/)" 5000 && await 20 test -e "$M/big/f5000" && same "$(ls "$M/big" | wc -l)" 5000 || return 1
    await 20 eval 'same "$(ls "$M.2/big" | wc -l)" 5000' || return 1
    head -c 1000 "$M/big/f1" >/dev/null
    before=$(revision)
    timeout 60 etcdctl --endpoints="$EP" watch --prefix "" --rev $((before + 1)) -w json >"$T/events" 2>/dev/null &
    pid=$!
    rm -f "$T/stop"
    reader >"$T/reader" 2>&1 &
    local rd=$!
    (cd "$M/big" && mv "$M/big" "$M/moved" && same "$(pwd -P)" "$(realpath "$M")/moved" && same "$(cat f77)" value-77 && echo later >later)
    rc=$?
    touch "$T/stop"
    wait $rd || { cat "$T/reader"; rc=1; }
    cat "$T/reader"
    [ $rc = 0 ] && same "$(($(revision) - before))" 2 && same "$(count big/) $(count moved/)" "0 5001" &&
        await 30 eval '[ "$(grep -o "\"mod_revision\":'$((before + 1))'[,}]" "$T/events" | wc -l)" = 10000 ]' &&
        same "$(ls "$M/moved" | wc -l)" 5001 && ! test -e "$M/big" && await 30 eval 'same "$(ls "$M.2/moved" 2>/dev/null | wc -l)" 5001' &&
        ! test -e "$M.2/big" && same "$(cat "$M/moved/f4999" "$M.2/moved/f5000")" value-4999value-5000 &&
        echo new >"$M/moved/f1" && same "$(value moved/f1)" new && rm "$M/moved/later"
    rc=$?
    kill $pid
    wait $pid 2>/dev/null
    return $rc
}
large_values() { # few keys, but more bytes than a request may have
    mkdir "$M/lv" && for i in 1 2 3 4; do head -c 900000 /dev/urandom >"$M/lv/$i" || return 1; done
    sum=$(cat "$M"/lv/* | md5sum) && before=$(revision) && mv "$M/lv" "$M/lw" && same "$(cat "$M"/lw/* | md5sum)" "$sum" || return 1
    [ "$B" != cairnd ] || same "$(($(revision) - before))" 1
}
too_large() { # beyond cairnd's limits too: mv copies
    fill tl/ 10001 && await 20 test -e "$M/tl/f10001" && ! python3 -c "import os; os.rename('$M/tl', '$M/tm')" 2>"$T/out" && grep -q 'cross-device' "$T/out" && same "$(count tl/)" 10001
}
other_server() {
    mkdir "$M/os" && for i in $(seq 130); do echo "$i" >"$M/os/$i" || return 1; done
    ! python3 -c "import os; os.rename('$M/os', '$M/ot')" 2>"$T/out" && grep -q 'cross-device' "$T/out" && mv "$M/os" "$M/ot" && same "$(cat "$M/ot/77")" 77 && ! test -e "$M/os" && same "$(count ot/)" 131
}

run() {
    check "the working directory is renamed" at_depth_0
    check "a directory above the working directory is" at_depth_2
    check "into another directory" into_another
    check "onto an empty one" onto_empty
    check "again and again, with names that come back" again_and_again
    check "open files follow" open_files
    check "locks by O_EXCL" excl_lock
    check "commits under way" busy_writers
    check "names are made and removed in it" made_inside
    check "names are made in it by another mount" made_by_another
    check "the overlay's files" swap_file
    check "a bind mount of a file" bound
    command -v inotifywait >/dev/null && check "a watcher" watched
    check "the directory's own key stays" value_stays
    mount_at "$M.2" ""
    check "keys of which this mount had not heard" unknown_here
    check "renamed by another mount" by_another
    mount_at "$M.3" conflict=fail
    check "conflict=fail: nothing was changed" conflicts
    check "values larger than a request" large_values
    if [ "$B" = cairnd ]; then
        check "5,000 files in one revision" large_one
        check "more than cairnd takes" too_large
    else
        check "another server: mv copies" other_server
    fi
}
mount_main run
