#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves that cairnd, killed with SIGKILL at random moments under load, has everything it acknowledged when it starts
# again, and that its revision never goes back: tests/e2e/kill9.c says how.
#
#   KILLS=50    more of them (10 by default)      SEED=n    repeat a run
set -u
cd "$(dirname "$0")/../.." || exit 1
O=${O:-build}
work=$(mktemp -d "${TMPDIR:-/var/tmp}/cairn-kill9-XXXXXX")
trap 'rm -rf "$work"' EXIT
timeout -k 5 500 "$O/tests/e2e/kill9" "$O/cairnd" "$work" "${PORT:-$((21250 + $$ % 20 * 2))}" "${KILLS:-10}" && exit 0
status=$?
echo "not ok - the end of cairnd's log:"
tail -n 5 "$work/log" | sed 's/^/# /'
exit $status
