/* SPDX-License-Identifier: Apache-2.0 */
/* handle_doubt.c - a transaction whose outcome is unknown: what became of it, and whether to send it again.
 *
 * A pin is a compare with the exact state of one key that the transaction itself changes. With one, two of the same
 * cannot both take effect as long as the key is not brought back to that state. So while the key has it, the
 * transaction is sent again. One without a pin never is: the first may still be on its way, and would undo what others
 * did meanwhile.
 *
 *     pin                        no longer so, and it happened if
 *     revision of a key, put     the key holds our bytes at a newer revision, or did, going back to the pin
 *     absence of a key, put      it was made with our bytes (or with our own lease) after we had begun
 *     revision, deleted          the key is gone, or another one has its name
 *     the same, put elsewhere    (a move) the other name got our bytes at the very revision at which this one went; which
 *                                that was is found by halving
 *
 * Else it is refused in the usual way: by sending it once more, as it can take effect no more.
 *
 * Bytes are no signature. For a save that is all right: what was wanted is there. One who asked to be the only one
 * (O_EXCL, mkdir, RENAME_NOREPLACE) must not be told so on such a ground, nor that there is another one: it ends with
 * ETIMEDOUT at once. The store keeps nothing else that could tell two creations of one empty file apart, but for a
 * lease. What cannot be told apart otherwise are two equal appends, or two equal renames of one file, by two mounts in
 * that very moment.
 *
 * An absent key can be made, and deleted, and so be absent once more. Then the first one, should a member that stood
 * still send it on much later, makes it again: a file that nobody holds. No request of etcd's rules that out, sent
 * again or not.
 *
 * Owner: the core thread.
 */
#include <errno.h>

#include "handle_txn_private.h"

static struct put *put_of(struct txn *t, struct slice key)
{
    for (unsigned i = 0; i < t->n_puts; i++)
        if (slice_eq(t->puts[i].key, key))
            return &t->puts[i];
    return NULL;
}

static bool deletes_key(const struct txn *t, struct slice key)
{
    for (unsigned i = 0; i < t->n_deletes; i++)
        if (slice_eq(key, t->deletes[i]))
            return true;
    return false;
}

/* Of a key that is put: the compare may be of a range that begins with it (mkdir). */
static bool compares_absence(const Etcdserverpb__Compare *c)
{
    return c->target == ETCDSERVERPB__COMPARE__COMPARE_TARGET__CREATE ? c->create_revision == 0
           : c->target == ETCDSERVERPB__COMPARE__COMPARE_TARGET__MOD  ? c->mod_revision == 0
                                                                      : false;
}

void doubt_find_pin(struct txn *t)
{
    struct slice absent = SLICE_NONE;

    for (size_t i = 0; i < t->req.n_compare && t->pin_key.ptr == NULL; i++) {
        const Etcdserverpb__Compare *c = t->compares[i];
        struct slice key = slice_of(c->key.data, c->key.len);

        if (c->result != ETCDSERVERPB__COMPARE__COMPARE_RESULT__EQUAL)
            continue;
        if (compares_absence(c)) {
            if (put_of(t, key))
                absent = key;
        } else if (c->range_end.len == 0 && c->target == ETCDSERVERPB__COMPARE__COMPARE_TARGET__MOD &&
                   (put_of(t, key) || deletes_key(t, key))) {
            t->pin_key = key;
            t->pin_rev = c->mod_revision;
        }
    }
    if (t->pin_key.ptr == NULL)
        t->pin_key = absent;
}

/* ---- looking ------------------------------------------------------------------------------- */

static void looked(struct client_call *call);

static void look_fire(struct timer *timer)
{
    struct txn *t = (struct txn *)((char *)timer - offsetof(struct txn, timer));
    Etcdserverpb__RangeRequest r = ETCDSERVERPB__RANGE_REQUEST__INIT;
    int64_t left = t->deadline_ms - client_now_ms();

    if (left <= 0) {
        txn_finish(t, ETIMEDOUT);
        return;
    }
    r.key = pb_of(t->pin_key.ptr && t->look != LOOK_TARGET ? t->pin_key : t->n_puts ? t->puts[0].key : t->deletes[0]);
    r.revision = t->look_rev;
    t->call = (struct client_call){.done = looked};
    client_start(t->fs->client, &t->call, CLIENT_RANGE, &r.base,
                 left > COMMIT_ATTEMPT_MS ? COMMIT_ATTEMPT_MS : left);
}

static void look(struct txn *t, enum doubt_look what, int64_t rev, uint64_t after_ms)
{
    t->look = what;
    t->look_rev = rev;
    t->timer.fire = look_fire;
    session_timer_set(&t->fs->session, &t->timer, after_ms);
}

void doubt_settle(struct txn *t)
{
    look(t, LOOK_NOW, 0, t->sent_again ? COMMIT_REREAD_MS : 0);
}

void doubt_refused(struct txn *t, int err)
{
    t->verdict = err;
    look(t, LOOK_NOW, 0, 0);
}

void doubt_wait(struct txn *t)
{
    look(t, LOOK_NOW, 0, COMMIT_REREAD_MS);
}

/* ---- what it means --------------------------------------------------------------------------- */

static void send_again(struct txn *t)
{
    t->sent_again = true;
    txn_post(t);
}

/* It has not happened, and can no more. */
static void refuse(struct txn *t)
{
    t->sent_again = false;
    txn_post(t);
}

static bool holds_ours(const struct put *p, const Mvccpb__KeyValue *kv)
{
    return slice_eq(slice_of(kv->value.data, kv->value.len), slice_of(p->value->bytes, p->value->meta.size));
}

static void happened(struct txn *t, struct put *p, const Mvccpb__KeyValue *kv)
{
    p->meta = meta_of(kv);
    p->meta.hash = p->value->meta.hash;
    if (p->value->meta.mod_rev == 0)
        p->value->meta = p->meta;
    t->rev = kv->mod_revision;
    txn_finish(t, 0);
}

static bool put_happened(struct txn *t, struct put *p, const Mvccpb__KeyValue *kv)
{
    if (kv == NULL || kv->mod_revision <= t->before_rev || !holds_ours(p, kv))
        return false;
    happened(t, p, kv);
    return true;
}

static bool pin_holds(const struct txn *t, const Mvccpb__KeyValue *kv)
{
    return kv ? kv->mod_revision == t->pin_rev : t->pin_rev == 0;
}

/* The key that we put is not as it was pinned, and kv (NULL: absent) is not ours: what was there before? */
static void look_back(struct txn *t, const Mvccpb__KeyValue *kv)
{
    if (kv && kv->mod_revision > t->pin_rev)
        look(t, LOOK_BEFORE, kv->mod_revision - 1, 0);
    else
        txn_finish(t, ETIMEDOUT); /* deleted since: nobody knows, and nobody will */
}

/* The key as it was made. */
static void judge_birth(struct txn *t, const Mvccpb__KeyValue *kv)
{
    struct put *p = put_of(t, t->pin_key);
    bool signed_by_lease = t->new_lease && p->lease == t->new_lease;

    if (kv == NULL) {
        txn_finish(t, ETIMEDOUT);
    } else if (signed_by_lease ? kv->lease != t->new_lease : !holds_ours(p, kv)) {
        refuse(t);
    } else if (t->exclusive && !signed_by_lease) {
        txn_finish(t, ETIMEDOUT);
    } else {
        happened(t, p, kv);
    }
}

static void look_at_birth(struct txn *t, const Mvccpb__KeyValue *kv)
{
    if (kv->create_revision <= t->before_rev)
        refuse(t);
    else if (kv->version > 1)
        look(t, LOOK_BIRTH, kv->create_revision, 0);
    else
        judge_birth(t, kv);
}

/* The key that we delete is not as it was pinned. rev: now. */
static void look_at_removal(struct txn *t, const Mvccpb__KeyValue *kv, int64_t rev)
{
    if (kv && kv->create_revision <= t->pin_rev) {
        refuse(t); /* changed, and not deleted since */
        return;
    }
    t->went_rev = kv ? kv->create_revision - 1 : rev;
    if (t->n_puts == 0) {
        t->rev = t->went_rev;
        txn_finish(t, 0);
        return;
    }
    t->there_rev = t->pin_rev - 1;
    look(t, LOOK_WENT, t->before_rev > t->pin_rev ? t->before_rev : t->pin_rev, 0);
}

static void seen_now(struct txn *t, const Mvccpb__KeyValue *kv, int64_t rev)
{
    struct put *p = t->pin_key.ptr ? put_of(t, t->pin_key) : t->n_puts ? &t->puts[0] : NULL;

    if (t->pin_key.ptr == NULL) {
        if (p ? put_happened(t, p, kv) : kv == NULL) {
            if (p == NULL) {
                t->rev = rev;
                txn_finish(t, 0);
            }
        } else
            doubt_wait(t);
    } else if (pin_holds(t, kv)) {
        if (t->verdict)
            txn_finish(t, t->verdict);
        else
            send_again(t);
    } else if (t->pin_rev == 0)
        look_at_birth(t, kv);
    else if (p == NULL)
        look_at_removal(t, kv, rev);
    else if (!put_happened(t, p, kv))
        look_back(t, kv);
}

static void seen_before(struct txn *t, const Mvccpb__KeyValue *kv)
{
    if (pin_holds(t, kv))
        refuse(t); /* the first change since is of others */
    else if (!put_happened(t, put_of(t, t->pin_key), kv))
        look_back(t, kv);
}

/* Of a move: between there_rev and went_rev the old name went. The first look is at the moment before we began. */
static void seen_old_name(struct txn *t, const Mvccpb__KeyValue *kv)
{
    if (pin_holds(t, kv)) {
        t->there_rev = t->look_rev;
    } else if (t->there_rev < t->pin_rev) {
        refuse(t);
        return;
    } else
        t->went_rev = t->look_rev;
    if (t->went_rev - t->there_rev > 1)
        look(t, LOOK_WENT, t->there_rev + (t->went_rev - t->there_rev) / 2, 0);
    else
        look(t, LOOK_TARGET, t->went_rev, 0);
}

/* What the new name held when the old one went. */
static void seen_target(struct txn *t, const Mvccpb__KeyValue *kv)
{
    if (kv == NULL || kv->mod_revision != t->went_rev || !holds_ours(&t->puts[0], kv)) {
        refuse(t); /* it went elsewhere */
    } else if (t->exclusive) {
        txn_finish(t, ETIMEDOUT);
    } else {
        happened(t, &t->puts[0], kv);
    }
}

static void looked(struct client_call *call)
{
    struct txn *t = (struct txn *)((char *)call - offsetof(struct txn, call));
    const Etcdserverpb__RangeResponse *r = call->outcome == CLIENT_OK ? (const void *)call->reply : NULL;
    const Mvccpb__KeyValue *kv = r && r->n_kvs == 1 ? r->kvs[0] : NULL;

    if (r == NULL && t->look_rev && call->outcome == CLIENT_REFUSED) {
        txn_finish(t, ETIMEDOUT); /* compacted since */
        return;
    }
    if (r == NULL) {
        look(t, t->look, t->look_rev, COMMIT_REREAD_MS);
        return;
    }
    switch (t->look) {
    case LOOK_NOW:
        seen_now(t, kv, r->header ? r->header->revision : 0);
        return;
    case LOOK_BEFORE:
        seen_before(t, kv);
        return;
    case LOOK_BIRTH:
        judge_birth(t, kv);
        return;
    case LOOK_WENT:
        seen_old_name(t, kv);
        return;
    case LOOK_TARGET:
        seen_target(t, kv);
        return;
    }
}
