#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs every test and closes with "N passed, N failed".
#
#   build/tests/unit/*    TAP programs; each "ok" line counts
#   build/tests/fuzz/*    each replays tests/fuzz/corpus/NAME/ and a short random run; counts one
#   tests/e2e/*.sh        scripts: exit 0 passed, 77 skipped, else failed; count one each, or their own
#                         "ok ..." / "not ok ..." lines if they print any
# An argument is a shell pattern: only tests whose file name matches it. Output of each test: $O/log/NAME.log.
set -u
cd "$(dirname "$0")/.." || exit 1
O=${O:-build}
export O SAN=${SAN:-} TSAN=${TSAN:-}
pattern=${1:-*}
limit_s=${TEST_LIMIT_S:-600}
passed=0 failed=0 skipped=0
mkdir -p "$O/log"
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1:abort_on_error=0}
export LSAN_OPTIONS=${LSAN_OPTIONS:-suppressions=$PWD/tests/lsan.supp:print_suppressions=0}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}
export TSAN_OPTIONS=${TSAN_OPTIONS:-suppressions=$PWD/tests/tsan.supp:second_deadlock_stack=1:exitcode=66}

run_one() { # name command...
    local name=$1 log="$O/log/$1.log" rc ok bad start=$SECONDS
    shift
    timeout -k 10 "$limit_s" "$@" >"$log" 2>&1 </dev/null
    rc=$?
    ok=$(grep -c '^ok ' "$log")
    bad=$(grep -c '^not ok ' "$log")
    if [ $rc = 77 ]; then
        skipped=$((skipped + 1))
        echo "skip  $name: $(tail -n 1 "$log")"
        return
    fi
    [ $((ok + bad)) = 0 ] && { [ $rc = 0 ] && ok=1 || bad=1; }
    [ $rc != 0 ] && [ "$bad" = 0 ] && bad=1
    passed=$((passed + ok)) failed=$((failed + bad))
    if [ "$bad" = 0 ]; then
        echo "ok    $name ($ok, $((SECONDS - start)) s)"
    else
        echo "FAIL  $name (status $rc, $bad failed, $((SECONDS - start)) s), from $log:"
        # What failed comes first, with what it said: the rest of a log may be long.
        grep -A 25 '^not ok ' "$log" | grep -v '^ok ' | head -n 60 | sed 's/^/      /'
        [ "$(grep -c '^not ok ' "$log")" != 0 ] && [ $rc -lt 124 ] || tail -n 40 "$log" | sed 's/^/      /'
    fi
}

for t in "$O"/tests/unit/* "$O"/tests/fuzz/*; do
    case $t in *.o | *.d) continue ;; esac
    [ -x "$t" ] && [ -f "$t" ] || continue
    # shellcheck disable=SC2254 # the pattern is meant as one
    case ${t##*/} in $pattern) ;; *) continue ;; esac
    run_one "${t##*/}" "$t"
done
for t in tests/e2e/*.sh; do
    [ -x "$t" ] || continue
    # shellcheck disable=SC2254
    case ${t##*/} in $pattern) ;; *) continue ;; esac
    run_one "$(basename "$t" .sh)" "$t"
done

if [ $skipped = 0 ]; then echo "$passed passed, $failed failed"; else echo "$passed passed, $failed failed, $skipped skipped"; fi
[ $failed = 0 ] && [ $passed != 0 ]
