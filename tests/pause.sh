# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# pause.sh - pause [SECONDS]: a short wait between two looks at a condition, without a process. Sourced, from the root.
#
# It reads from a pipe that nobody writes to, opened once: bash has hung for ever on `read -rt 0.1 <> <(:)`, which makes a
# process substitution each time.
exec {NEVER}<> <(:)
pause() { read -rt "${1:-0.05}" -u "$NEVER" || true; }
