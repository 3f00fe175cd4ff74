/* SPDX-License-Identifier: Apache-2.0 */
/* inject_order.h - a directory's DELETE is injected after all that was told before of what lies below it.
 *
 * Injections are spread over processes by directory. Without this, the removal of `app` could reach the
 * kernel before the deletions inside app/x/y, whose events would then come late or never.
 *
 * Each injection takes a turn number when it is first heard of. A removal counts those under way below its
 * directory at that moment, and may start once all of them have ended. It waits for earlier turns only, and
 * every queue on the way keeps the order of turns, so the earliest of all can always go on.
 *
 * Owner: the core thread.
 */
#pragma once
#include "feed.h"

/* ev is going to be injected. */
void inject_order_enter(struct change_event *ev);
/* It was injected, or will not be; again: nothing. True: a removal need not wait any longer. */
bool inject_order_leave(struct change_event *ev);
/* May it be injected now? */
static inline bool inject_order_ready(const struct change_event *ev)
{
    return ev->below == 0;
}
