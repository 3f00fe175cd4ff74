/* SPDX-License-Identifier: Apache-2.0 */
/* apply_rows.c - the small tables: alarms, and what is read of all of them at start. Members are apply_member.c's.
 *
 *     alarm    key member id u64be, type u32be; value one byte, 1
 *
 * Owner: the apply thread writes, under a->mu; other threads copy under it.
 */
#include <errno.h>
#include "apply_state.h"
#include "turn.h"

int row_put(struct apply *a, enum table t, struct slice id, struct slice value)
{
    a->hash = state_hash_bytes(a->hash, 0x100 + (uint64_t)t, id);
    a->hash = state_hash_bytes(a->hash, 0x200 + (value.ptr != NULL), value);
    return delta_row(store_live(a->o.store), t, id, value);
}

/* ---- alarms ------------------------------------------------------------------------------ */

static void alarms_count(struct apply *a)
{
    bool nospace = false;

    a->corrupt = false;
    for (size_t i = 0; i < a->n_alarms; i++) {
        nospace |= a->alarms[i].type == ETCDSERVERPB__ALARM_TYPE__NOSPACE;
        a->corrupt |= a->alarms[i].type == ETCDSERVERPB__ALARM_TYPE__CORRUPT;
    }
    a->nospace = nospace;
    atomic_store(&a->nospace_seen, nospace);
    atomic_store(&a->alarm_proposed, false);
}

static size_t alarm_find(const struct apply *a, uint64_t member_id, int type)
{
    size_t i = 0;

    while (i < a->n_alarms && (a->alarms[i].member_id != member_id || a->alarms[i].type != type))
        i++;
    return i;
}

static int alarm_row(struct apply *a, uint64_t member_id, int type, bool set)
{
    uint8_t key[12];

    put_u64be(key, member_id);
    put_u32be(key + 8, (uint32_t)type);
    return row_put(a, TABLE_ALARM, slice_of(key, sizeof key), set ? S("\1") : SLICE_NONE);
}

/* 1: the alarm is (now) set and belongs into the answer. */
static int alarm_activate(struct apply *a, uint64_t member_id, int type)
{
    int err;

    if (type == ETCDSERVERPB__ALARM_TYPE__NONE)
        return 0;
    if (alarm_find(a, member_id, type) < a->n_alarms)
        return 1;
    if (a->n_alarms == ALARMS_MAX)
        return 0; /* alarms of ids that are no members: etcd stores without bound */
    err = alarm_row(a, member_id, type, true);
    if (err)
        return err;
    pthread_mutex_lock(&a->mu);
    a->alarms[a->n_alarms++] = (struct alarm){member_id, type};
    pthread_mutex_unlock(&a->mu);
    alarms_count(a);
    return 1;
}

static int alarm_deactivate(struct apply *a, uint64_t member_id, int type)
{
    size_t i = alarm_find(a, member_id, type);
    int err;

    if (i == a->n_alarms)
        return 0;
    err = alarm_row(a, member_id, type, false);
    if (err)
        return err;
    pthread_mutex_lock(&a->mu);
    a->alarms[i] = a->alarms[--a->n_alarms];
    pthread_mutex_unlock(&a->mu);
    alarms_count(a);
    return 1;
}

static bool alarm_answer(struct applying *x, Etcdserverpb__AlarmResponse *resp, uint64_t member_id, int type)
{
    Etcdserverpb__AlarmMember *m = msg_new(x->out, &etcdserverpb__alarm_member__descriptor);

    if (m == NULL)
        return false;
    m->memberid = member_id;
    m->alarm = (Etcdserverpb__AlarmType)type;
    resp->alarms[resp->n_alarms++] = m;
    return true;
}

static void alarm_respond(struct apply *a, struct applying *x, const Etcdserverpb__AlarmRequest *req, bool listed)
{
    Etcdserverpb__AlarmResponse *resp = msg_new(x->out, &etcdserverpb__alarm_response__descriptor);
    bool ok = resp != NULL;

    if (ok)
        resp->alarms = arena_alloc(x->out, (a->n_alarms + 1) * sizeof *resp->alarms);
    ok = ok && resp->alarms;
    if (ok && listed)
        ok = alarm_answer(x, resp, req->memberid, (int)req->alarm);
    if ((int)req->action == ETCDSERVERPB__ALARM_REQUEST__ALARM_ACTION__GET) {
        for (size_t i = 0; ok && i < a->n_alarms; i++)
            if (req->alarm == ETCDSERVERPB__ALARM_TYPE__NONE || a->alarms[i].type == (int)req->alarm)
                ok = alarm_answer(x, resp, a->alarms[i].member_id, a->alarms[i].type);
    }
    x->response = resp;
    x->err = ok ? 0 : ERR_ARENA_FULL;
}

int apply_alarm(struct apply *a, struct applying *x)
{
    Etcdserverpb__AlarmRequest *req;
    int err = apply_decode(a, x, &etcdserverpb__alarm_request__descriptor, &req);
    int changed = 0;

    if (err)
        return err;
    if ((int)req->action == ETCDSERVERPB__ALARM_REQUEST__ALARM_ACTION__ACTIVATE)
        changed = alarm_activate(a, req->memberid, (int)req->alarm);
    else if ((int)req->action == ETCDSERVERPB__ALARM_REQUEST__ALARM_ACTION__DEACTIVATE)
        changed = alarm_deactivate(a, req->memberid, (int)req->alarm);
    if (changed < 0)
        return changed;
    if (x->out)
        alarm_respond(a, x, req, changed > 0);
    return 0;
}

size_t apply_alarms(struct apply *a, struct arena *ar, struct alarm **ret_alarms)
{
    size_t n;

    pthread_mutex_lock(&a->mu);
    n = a->n_alarms;
    *ret_alarms = arena_alloc(ar, (n + 1) * sizeof **ret_alarms);
    if (*ret_alarms)
        memcpy(*ret_alarms, a->alarms, n * sizeof **ret_alarms);
    else
        n = 0;
    pthread_mutex_unlock(&a->mu);
    return n;
}

/* ---- at start --------------------------------------------------------------------------------- */

static int load_alarm(void *ctx, struct slice id, struct slice value)
{
    struct apply *a = ctx;

    (void)value;
    if (id.len != 12 || a->n_alarms == ALARMS_MAX)
        return -EUCLEAN;
    a->alarms[a->n_alarms++] = (struct alarm){get_u64be(id.ptr), (int)get_u32be(id.ptr + 8)};
    return 0;
}

int rows_load(struct apply *a)
{
    struct view *v;
    int err = apply_view(a, &v);

    if (!err)
        err = view_row_scan(v, TABLE_ALARM, load_alarm, a);
    if (!err)
        err = members_load(a, v);
    if (!err)
        err = leases_load(a, v);
    alarms_count(a);
    apply_view_close(a);
    return err;
}

void rows_free(struct apply *a)
{
    pthread_mutex_lock(&a->mu);
    a->n_alarms = 0;
    members_free(a);
    pthread_mutex_unlock(&a->mu);
}
