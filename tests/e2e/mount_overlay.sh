#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: editors' files never reach the store, temporary ones only if they stay; a key renamed to an editors' name is published as
# that after a while and not before; a bind mount of one file survives every kind of save; refusals reach even the shell's echo.
# shellcheck source=tests/e2e/mount_lib.sh
. "$(dirname "$0")/mount_lib.sh"
SERVER_OPTIONS="--quota-backend-bytes 16777216"

keys() { ctl get "$1" --prefix --keys-only | grep . | tr '\n' ' '; }

editors_stay() {
    mkdir "$M/e" && for n in .k.swp .k.swpx 'k~' '#k#' '.#k'; do echo x >"$M/e/$n" && same "$(cat "$M/e/$n")" x || return 1; done
    same "$(ls -A "$M/e" | wc -l)" 5 && await 3 eval 'sleep 0.5; false' || true
    same "$(keys e/)" "e/ " && ! rmdir "$M/e" 2>/dev/null && rm "$M/e/"* "$M/e/".[#k]* && rmdir "$M/e"
}
key_wins() { # a key of an editors' name made elsewhere is shown
    mkdir "$M/w" && echo mine >"$M/w/k~" && ctl put w/k~ theirs >/dev/null && await 5 eval '[ "$(cat "$M/w/k~")" = theirs ]' &&
        echo changed >"$M/w/k~" && same "$(value w/k~)" changed && rm "$M/w/k~" && same "$(keys w/k)" ""
}
temporary() {
    mkdir "$M/t" && python3 - "$M/t" <<'P' && same "$(keys t/)" "t/ " && await 6 eval '[ "$(keys t/)" = "t/ t/tmpABCDEFGH " ]' && same "$(value t/tmpABCDEFGH)" kept && same "$(cat "$M/t/tmpABCDEFGH")" kept
import os, sys
d = sys.argv[1]
f = os.open(d + "/tmpABCDEFGH", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600); os.write(f, b"kept"); os.close(f)
f = os.open(d + "/tmpIJKLMNOP", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600); os.write(f, b"gone"); os.close(f)
os.unlink(d + "/tmpIJKLMNOP")
P
}
limbo() {
    local before
    echo v >"$M/l" && before=$(revision) && mv "$M/l" "$M/l~" && ! test -e "$M/l" && same "$(cat "$M/l~")" v && same "$(revision)" "$before" || return 1
    await 6 eval '[ "$(keys l)" = "l~ " ]' && same "$(value l~)" v && same "$(cat "$M/l~")" v && same "$(($(revision) - before))" 1
}
limbo_returns() {
    local create
    echo v >"$M/lr" && create=$(field lr CreateRevision) && mv "$M/lr" "$M/lr~" && echo w >"$M/lr" && rm "$M/lr~" &&
        same "$(field lr CreateRevision)" "$create" && same "$(value lr)" w && same "$(cat "$M/lr")" w && same "$(keys lr)" "lr "
}
limbo_removed() { echo v >"$M/lx" && mv "$M/lx" "$M/lx~" && rm "$M/lx~" && await 5 eval '[ -z "$(keys lx)" ]' && ! test -e "$M/lx"; }
bind_mount() { # one file, mounted elsewhere, through every kind of save
    local v rc=0
    echo v0 >"$M/conf" && touch "$T/bound" && mount --bind "$M/conf" "$T/bound" || return 1
    echo v1 >"$M/conf" && same "$(cat "$T/bound")" v1 || rc=1
    sed -i s/v1/v2/ "$M/conf" && same "$(cat "$T/bound")" v2 || rc=1
    echo v3 >"$M/conf.new" && mv "$M/conf.new" "$M/conf" && same "$(cat "$T/bound")" v3 || rc=1
    printf v4 | ctl put conf >/dev/null && same "$(cat "$T/bound")" v4 || rc=1
    mv "$M/conf" "$M/conf~" && echo v5 >"$M/conf" && same "$(cat "$T/bound")" v5 || rc=1
    ctl del conf >/dev/null && printf v6 | ctl put conf >/dev/null && await 5 eval '[ "$(cat "$T/bound")" = v6 ]' || { cat "$T/bound"; rc=1; }
    umount "$T/bound"
    return $rc
}
unlinked_while_open() { # what is written to a file that is no more goes nowhere
    exec 7>"$M/un" && echo a >&7 && rm "$M/un" && echo b >&7
    exec 7>&-
    same "$(keys un)" "" && ! test -e "$M/un"
}
too_large() { # bash's echo does not look at close
    local big
    big=$(head -c 2000000 /dev/zero | tr '\0' x)
    echo before >"$M/large"
    { ! echo "$big" >"$M/large"; } 2>"$T/err" && grep -qi "too large" "$T/err" && same "$(value large)" before && same "$(cat "$M/large")" before
}
no_space() {
    local i
    for i in $(seq 40); do head -c 1000000 /dev/urandom >"$M/fill$i" 2>/dev/null || break; done
    await 10 eval '{ ! echo x >"$M/nospace"; } 2>"$T/err"' && grep -qi "no space" "$T/err" && same "$(value nospace)" "" && same "$(cat "$M/conf")" v6
}

run() {
    check "editors' files stay here" editors_stay
    check "a key of such a name wins" key_wins
    check "a temporary file that stays is published" temporary
    check "a key renamed to an editors' name" limbo
    check "and made again: a modification" limbo_returns
    check "and removed: gone" limbo_removed
    check "a bind mount of one file follows every save" bind_mount
    check "written to after unlink" unlinked_while_open
    check "too large: echo says so" too_large
    check "no space: echo says so" no_space
}
mount_main run
