#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves, with three real members: whatever one disk does to one member's files, its member is repaired from the others, or refuses
# with a sentence; it never answers anything wrong, and nothing is lost. One cell after the other of this grid:
#
#     file   the store: LMDB's newer and older meta page, branch and leaf pages of two tables, its free list;
#            the log: a segment's head, a batch; CURRENT; FOUNDED
#     how    a bit, a sector of zeros, another page or sector in its place, an older copy of it, cut short, LMDB's page head astray
#     who    a follower at rest, the leader at rest, a follower while it runs (pages of the store only: they are mapped)
#
# A cell: the damage; the start; all is read from that member alone, and compared; then it hashes like the others, or has refused, and
# is given its files back. A leaf as an older commit left it is the one thing that no read can tell: there the scrub is waited for,
# so it is part of the long form only. Pages by the hundred, without processes: tests/unit/base_rot.c. The log: tests/unit/wal.c.
#
#     SEED=n     another choice            ROT=n    so many cells (default 3)           ROT=all    each of them, about half an hour
#     ROT='leader wal-* *'    those that the pattern names
. "$(dirname "$0")/cluster_lib.sh"
command -v etcdctl >/dev/null && command -v python3 >/dev/null || exit 77
BASE=$((22424 + $$ % 3 * 20))
CLUSTER=$(cluster_of a:1 b:2 c:3)
declare -A N=([a]=1 [b]=2 [c]=3)
SEED=${SEED:-$$}
export SEED
RANDOM=$SEED
cells=${ROT:-3}
echo "# SEED=$SEED"

start() {
    : >"$T/$1.log" # now: what the last start said is not of this one
    member_start "$1" "${N[$1]}"
}
name_of() { for m in a b c; do [ "${N[$m]}" = "$1" ] && echo "$m"; done; }
others() { for m in a b c; do [ "$m" != "$1" ] && echo "${N[$m]}"; done; }
any_leader() { leader_n 1 2 3; }
the_leader() { # waited for: a member that begins anew may have led
    await 30 any_leader >/dev/null || return 1
    cat "$T/await"
}
index() { ctl "$1" endpoint status -w json 2>/dev/null | grep -o '"raftAppliedIndex":[0-9]*'; }
level() {
    local one
    one=$(index 1)
    [ -n "$one" ] && [ "$one" = "$(index 2)" ] && [ "$one" = "$(index 3)" ]
}
flushed() { for m in a b c; do grep -qa "$1" "$(current "$m" base)/data.mdb" || return 1; done; }
hashes() { for n in 1 2 3; do ctl $n endpoint hashkv -w json 2>/dev/null | grep -o '"hash":[0-9]*'; done; }
agree() { [ "$(hashes | sort | uniq -c | awk '{ print $1 }')" = 3 ]; }
unmarked() { ! [ -e "$T/$1/FAULTY" ] && ! [ -e "$T/$1/SUSPECT" ]; }
# What one member alone says of everything; nothing when it refuses, and what was before a refusal is not all.
says() { ctl "$1" get --prefix '' --consistency=s >"$T/said" 2>/dev/null && cat "$T/said"; }
# Of two lists of keys and values: what the member said is what is there, or it said nothing.
right() { ! [ -s "$T/said.one" ] || cmp -s "$T/said.one" "$T/truth"; }
truth() { ctl "$1" get --prefix '' >"$T/truth"; }
more() { # so that there is an older commit of every page, and a newer one
    timeout 60 "$O/tests/bench/load" put $((BASE + $1)) 2 20 300 2000 60 >/dev/null 2>&1
    ctl "$1" put last "$2" >/dev/null
    await 30 flushed "$2" >/dev/null
}

damage() { # name file how
    local file
    case $2 in
    wal-*)
        file=$(find "$(current "$1" wal)" -name '*.wal' -size +0 | sort | tail -n 1)
        if [ "$2" = wal-head ]; then at=0; else at=$((512 * (1 + RANDOM % 60))); fi
        SEED=$RANDOM python3 "$(dirname "$0")/rot.py" "$file" @$at "${3/=OLD/=$T/old/$1/${file#"$T/$1/"}}"
        ;;
    CURRENT | FOUNDED)
        file=$T/$1/$2
        SEED=$RANDOM python3 "$(dirname "$0")/rot.py" "$file" @0 "${3/=OLD/=$T/old/$1/$2}"
        ;;
    *)
        file=$(current "$1" base)/data.mdb
        SEED=$RANDOM python3 "$(dirname "$0")/rot.py" "$file" "$2" "${3/=OLD/=$T/old/$1/${file#"$T/$1/"}}"
        ;;
    esac
}

started() { ready "$1" || gone "$1"; }

at_rest() { # who file how
    local m=$1 said what="$2 $3"
    member_stop "$m" TERM
    rm -rf "$T/good"
    cp -a "$T/$m" "$T/good"
    damage "$m" "$2" "$3" >"$T/out" 2>&1 || { echo "# $what: $(tail -n 1 "$T/out")"; start "$m"; await 30 ready "$m" >/dev/null; return; }
    start "$m"
    if ! await 60 started "$m" >/dev/null; then not_ok "$what: neither starts nor refuses"; return; fi
    if gone "$m"; then
        member_wait "$m"
        check "$what: it refuses, with status $status and a sentence" grep -q '"level":"\(fatal\|error\)".*cannot start' "$T/$m.log"
        rm -rf "${T:?}/$m"
        cp -a "$T/good" "$T/$m"
        start "$m"
        check "$what: with its files back it starts" await 40 ready "$m"
    else
        : >"$T/said.one"
        says "${N[$m]}" >"$T/said.one"
        said=$(grep -c 'damaged' "$T/$m.log")
        if [[ $2 = leaf* && $3 = stale* ]]; then echo "# $what: read before the scrub: $(right && echo right || echo wrong)"
        else check "$what: it starts (damage named $said times), and says what is so" right; fi
    fi
}

running() { # who file how
    local m=$1 what="$2 $3, running"
    damage "$m" "$2" "$3" >"$T/out" 2>&1 || { echo "# $what: $(tail -n 1 "$T/out")"; return; }
    : >"$T/said.one"
    says "${N[$m]}" >"$T/said.one"
    if [[ $3 = stale* ]]; then echo "# $what: read before the scrub: $(right && echo right || echo wrong)"; else
        # A branch page is read by LMDB alone: what it hides is seen when the page is next looked at as a whole.
        if [[ $2 = branch* ]] && ! right; then echo "# $what: hidden rows until the next look"; else check "$what: it says what is so" right; fi
    fi
    if unmarked "$m"; then # nobody has met it: the next start, or the scrub
        member_stop "$m" TERM
        start "$m"
        check "$what: it starts again" await 60 ready "$m"
    fi
}

for m in a b c; do start $m; done
check "three members start" await 30 all_ready a b c
await 20 any_leader >/dev/null
timeout 100 "$O/tests/bench/load" fill $((BASE + 1)) 2 20 2000 2000 60 >/dev/null 2>&1
ctl 1 put last the-oldest-value >/dev/null
check "all is in the stores" await 30 flushed the-oldest-value

grid=()
for who in follower leader running; do
    for how in flip zero swap stale=OLD cut astray; do
        for file in meta meta-old branch:index branch:log leaf:index leaf:log free wal-head wal-body CURRENT FOUNDED; do
            case $file:$how in
            meta*:astray | wal-*:astray | CURRENT:astray | FOUNDED:astray | FOUNDED:swap | FOUNDED:stale* | CURRENT:swap | free:swap) continue ;;
            leaf*:stale*) [[ $cells = *[0-9] ]] && continue ;;
            esac
            if [ $who = running ]; then
                case $file:$how in branch*:cut | leaf*:cut) continue ;; branch* | leaf*) ;; *) continue ;; esac
            fi
            # shellcheck disable=SC2053 # a pattern
            [[ $cells = all || $cells = *[0-9] || "$who $file $how" = $cells ]] && grid+=("$who $file $how")
        done
    done
done
[[ $cells = *[0-9] ]] && mapfile -t grid < <(for g in "${grid[@]}"; do echo "$RANDOM $g"; done | sort -n | cut -d' ' -f2- | head -n "$cells")

for g in "${grid[@]}"; do
    read -r who file how <<<"$g"
    echo "# --- $g"
    rm -rf "$T/old"
    mkdir "$T/old"
    cp -a "$T/a" "$T/b" "$T/c" "$T/old"
    lead=$(the_leader) || { not_ok "$g: nobody leads"; continue; }
    more "$lead" "value-$RANDOM-of-$file-$how-$who"
    truth "$lead"
    lead=$(the_leader) || { not_ok "$g: nobody leads after the puts"; continue; }
    if [ "$who" = leader ]; then m=$(name_of "$lead"); else m=$(name_of "$(others "$(name_of "$lead")" | head -n 1)"); fi
    if [ "$who" = running ]; then running "$m" "$file" "$how"; else at_rest "$m" "$file" "$how"; fi
    if [[ $how = stale* && $file = leaf* ]]; then # the scrub comes a minute after the start
        await 75 grep -q 'the store is damaged' "$T/$m.log" >/dev/null
    fi
    check "$g: they agree" await 60 agree
    check "$g: nobody is faulty" await 60 unmarked "$m"
    check "$g: they are level" await 30 level
    truth_now=$(ctl "$(the_leader)" get --prefix '' | cmp - "$T/truth" 2>&1)
    same "$g: nothing was lost" "" "$truth_now"
done
for m in a b c; do member_stop $m TERM; done
exit "${FAILED:-0}"
