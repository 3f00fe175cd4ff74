/* SPDX-License-Identifier: Apache-2.0 */
/* diverge.c - plants a divergence: the state hash of a stopped member's store is changed, as if it had applied an entry
 * in another way than the others. DIR is its base-N. For cluster_snapshot.sh. */
#include <stdio.h>
#include "daemon/base.h"

int main(int argc, char **argv)
{
    struct base_options o = {.path = argc > 1 ? argv[1] : "", .map_bytes = UINT64_C(1) << 40, .readers_max = 8};
    struct delta *d = delta_new();
    struct base_reader *r;
    struct base_meta m;
    struct seal seal;
    struct base *b;

    if (base_open(&o, &b) != 0 || base_reader_new(b, &r) != 0 || base_reader_renew(r) != 0 ||
        base_reader_meta(r, &m) != 0 || d == NULL) {
        fprintf(stderr, "diverge: %s cannot be read\n", o.path);
        return 1;
    }
    seal = m.seal;
    seal.state_hash ^= 1;
    delta_seal(d, &seal);
    base_reader_free(r);
    if (base_flush(b, d) != 0)
        return 1;
    delta_free(d);
    base_close(b);
    return 0;
}
