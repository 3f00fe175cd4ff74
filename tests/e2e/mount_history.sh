#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: .etcd/events@REV/PATH tells each change from that revision on, once and in order, then goes on live, through a restart of the
# server and for a reader slower than the history is long; a compacted revision is ENOENT.
# shellcheck source=tests/e2e/mount_lib.sh
. "$(dirname "$0")/mount_lib.sh"

# told FILE: "TYPE key value" of each line
told() { python3 -c 'import json, sys
for line in sys.stdin:
    e = json.loads(line)
    print(e["type"], e.get("key"), e.get("value", "")[:20])' <"$1" | tr '\n' ','; }
lines() { wc -l <"$1"; }
lines_are() { [ "$(lines "$1")" = "$2" ]; }

# since REV PATH LINES: reads until there are so many lines
since() {
    timeout 30 cat "$M/.etcd/events@$1/$2" >"$T/told" 2>"$T/told.err" &
    READER=$!
    await 10 lines_are "$T/told" "$3" || { kill $READER; cat "$T/told" "$T/told.err" | cut -c1-300; return 1; }
}
ended() { kill "$READER"; wait "$READER" 2>/dev/null; true; }

past() {
    FIRST=$(($(revision) + 1))
    ctl put h/a 1 && ctl put h/b x && ctl put h/a 2 && ctl del h/a && ctl put hh other && ctl put h/a 3
    since "$FIRST" h/a 4 && ended && same "$(told "$T/told")" "PUT h/a 1,PUT h/a 2,DELETE h/a ,PUT h/a 3," &&
        since $((FIRST + 2)) h/.all 3 && ended && same "$(told "$T/told")" "PUT h/a 2,DELETE h/a ,PUT h/a 3," &&
        since $((FIRST + 2)) .all 4 && ended && same "$(told "$T/told")" "PUT h/a 2,DELETE h/a ,PUT hh other,PUT h/a 3,"
}
live() {
    since $((FIRST + 5)) h/a 1 && ctl put h/b not && ctl put h/a live && await 5 lines_are "$T/told" 2 && server_kill && server_start &&
        ctl put h/a again && await 10 lines_are "$T/told" 3 && ended && same "$(told "$T/told")" "PUT h/a 3,PUT h/a live,PUT h/a again,"
}
future() { since $(($(revision) + 3)) h/a 0 && ctl put h/a 1 && ctl put h/a 2 && ctl put h/a 3 && await 5 lines_are "$T/told" 1 && ended && same "$(told "$T/told")" "PUT h/a 3,"; }
odd_names() { ! test -e "$M/.etcd/events@x" && ! test -e "$M/.etcd/events@0" && ! test -e "$M/.etcd/events@01" && ! cat "$M/.etcd/events@1/%zz" && ! cat "$M/.etcd/events@1/a%2fb"; }
slow_reader() { # 12 MB of history, more than is read ahead
    local from i
    from=$(($(revision) + 1))
    head -c 400000 /dev/zero | tr '\0' x >"$T/value"
    for i in $(seq 30); do ctl put big/k <"$T/value" >/dev/null || return 1; done
    mkfifo "$T/pipe"
    timeout 60 cat "$M/.etcd/events@$from/big/k" >"$T/pipe" &
    READER=$!
    timeout 60 head -n 30 "$T/pipe" >"$T/told"
    kill "$READER" 2>/dev/null
    python3 - "$T/told" "$from" <<'PY'
import json, sys
revs = [json.loads(l)["revision"] for l in open(sys.argv[1])]
assert revs == list(range(int(sys.argv[2]), int(sys.argv[2]) + 30)), revs
PY
}
compacted() {
    ctl compact "$(revision)" && ! cat "$M/.etcd/events@$FIRST/h/a" 2>"$T/err" && grep -q "No such file" "$T/err" && since "$(revision)" h/a 0 && ended
}

run() {
    check "from a revision on" past
    check "then live, through a restart of the server" live
    check "a revision to come" future
    check "what is no name" odd_names
    check "a slow reader" slow_reader
    check "compacted" compacted
}
mount_main run
