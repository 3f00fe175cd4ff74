/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: transactions: comparisons, order, headers, nesting, what refuses them
 * are as tests/trace/txn_*.trace say, which were written from etcd's semantics and hold for etcd 3.7.1 itself
 * (tests/e2e/trace_server.sh). UPDATE=1 rewrites them: then read the diff. */
#include "../trace/kv_rig.h"

static void traces_are_as_written(void)
{
    kv_rig_traces("txn_", false);
}

int main(void)
{
    TEST(traces_are_as_written);
    return tap_done();
}
