#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: each way in which programs save a file (MOUNT.md B.4) makes the expected number of revisions, keeps the key's lease and
# create_revision, leaves no temporary name in the store at any moment, and no reader, here or on another mount, ever sees an
# empty or a half value. The cases are in mount_save.py.
# shellcheck source=tests/e2e/mount_lib.sh
. "$(dirname "$0")/mount_lib.sh"

run() {
    mount_at "$M.2" "" || say_bad "second mount"
    timeout 400 python3 tests/e2e/mount_save.py "$B" "$M" "$M.2" "$EP" "$T" ${CASES:-}
    local rc=$?
    [ $rc = 0 ] || FAILED=1
    [ $rc -lt 2 ] || say_bad "the driver ended with $rc"
}
mount_main run
