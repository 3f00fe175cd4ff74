/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: the argument checks of puts, deletes and txns refuse what etcd refuses, with its error, in its order, and
 * accept what it accepts, overlapping branches and unseen overlaps included; what counts as read-only and what the
 * quota is charged. Each txn is one line of a small language:
 *
 *     p:KEY  put          d:KEY  delete       d:KEY,END  delete range    g:KEY  range
 *     ( then | else )  a txn                  !  an op that is nothing   .  the empty key or END "\0" (from key)
 */
#include "daemon/limits.h"
#include "daemon/msg.h"
#include "daemon/txn.h"
#include "tap.h"

typedef Etcdserverpb__TxnRequest TxnRequest;
typedef Etcdserverpb__RequestOp RequestOp;

static struct arena ar;

/* ---- the language -------------------------------------------------------------------------- */

static ProtobufCBinaryData word(const char **s, const char *dot, size_t dot_len)
{
    const char *from = *s;

    if (**s == '.') {
        (*s)++;
        return (ProtobufCBinaryData){dot_len, (uint8_t *)(uintptr_t)dot};
    }
    while (**s && !strchr(" ,()|", **s))
        (*s)++;
    return (ProtobufCBinaryData){(size_t)(*s - from), (uint8_t *)(uintptr_t)from};
}

static TxnRequest *parse_txn(const char **s);

static RequestOp *parse_op(const char **s)
{
    RequestOp *op = msg_new(&ar, &etcdserverpb__request_op__descriptor);
    char what = *(*s)++;

    if (what == '(') {
        op->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN;
        op->request_txn = parse_txn(s);
        return op;
    }
    if (what == '!')
        return op;
    REQUIRE(*(*s)++ == ':');
    if (what == 'p') {
        op->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
        op->request_put = msg_new(&ar, &etcdserverpb__put_request__descriptor);
        op->request_put->key = word(s, "", 0);
    } else if (what == 'd') {
        op->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE;
        op->request_delete_range = msg_new(&ar, &etcdserverpb__delete_range_request__descriptor);
        op->request_delete_range->key = word(s, "", 0);
        if (**s == ',') {
            (*s)++;
            op->request_delete_range->range_end = word(s, "\0", 1);
        }
    } else {
        REQUIRE(what == 'g');
        op->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE;
        op->request_range = msg_new(&ar, &etcdserverpb__range_request__descriptor);
        op->request_range->key = word(s, "", 0);
    }
    return op;
}

/* Up to the closing parenthesis, or the end. */
static TxnRequest *parse_txn(const char **s)
{
    enum { OPS_MAX = 40 };
    TxnRequest *t = msg_new(&ar, &etcdserverpb__txn_request__descriptor);

    t->success = arena_alloc(&ar, OPS_MAX * sizeof *t->success);
    t->failure = arena_alloc(&ar, OPS_MAX * sizeof *t->failure);
    for (bool other = false; **s && **s != ')';) {
        if (**s == ' ') {
            (*s)++;
        } else if (**s == '|') {
            other = true;
            (*s)++;
        } else if (other) {
            t->failure[t->n_failure++] = parse_op(s);
        } else {
            t->success[t->n_success++] = parse_op(s);
        }
    }
    if (**s == ')')
        (*s)++;
    return t;
}

static TxnRequest *parse(const char *s)
{
    return parse_txn(&s);
}

/* ---- tests ------------------------------------------------------------------------------------ */

static void arguments(void)
{
    static const struct {
        const char *txn;
        int err;
    } cases[] = {
        {"", 0},
        {"p:a d:b g:c | p:a", 0},
        {"p:.", ERR_KEY_EMPTY},
        {"| d:.", ERR_KEY_EMPTY},
        {"g:.", ERR_KEY_EMPTY},
        {"!", ERR_KEY_NOT_FOUND},
        {"( p:a | ! )", ERR_KEY_NOT_FOUND},
        /* one list */
        {"p:a p:b p:a", ERR_DUPLICATE_KEY},
        {"p:a | p:a", 0},
        {"| p:x p:x", ERR_DUPLICATE_KEY},
        {"d:a p:a", ERR_DUPLICATE_KEY},
        {"p:a d:a", ERR_DUPLICATE_KEY},
        {"p:b d:a,c", ERR_DUPLICATE_KEY},
        {"p:c d:a,c", 0},
        {"p:a d:a,c", ERR_DUPLICATE_KEY},
        {"d:a d:a d:a,z d:b,c", 0},
        {"d:a,c d:b,e d:x p:d", ERR_DUPLICATE_KEY}, /* the second of two that overlap */
        {"d:a,z d:b,c p:y", ERR_DUPLICATE_KEY},     /* the outer of two nested */
        {"d:a,z d:b,c p:zz", 0},
        {"p:b d:a,.", 0},                           /* from key: etcd does not see it */
        {"p:b d:c,a", 0},                           /* inverted */
        {"p:aa d:a", 0},
        /* nested */
        {"( p:a | p:a )", 0},                       /* alternatives */
        {"( p:a | d:a )", 0},
        {"p:a ( p:a | )", ERR_DUPLICATE_KEY},
        {"p:a ( | p:a )", ERR_DUPLICATE_KEY},
        {"( p:a | ) p:a", ERR_DUPLICATE_KEY},
        {"( p:a | ) ( p:a | )", ERR_DUPLICATE_KEY},
        {"( p:a | ) ( | p:a )", ERR_DUPLICATE_KEY},
        {"( p:a | p:a ) ( | p:b )", 0},
        {"d:a ( p:a | )", ERR_DUPLICATE_KEY},
        {"( p:a | ) d:a", ERR_DUPLICATE_KEY},
        {"( d:a | ) p:a", ERR_DUPLICATE_KEY},
        {"( d:a | ) ( p:a | )", ERR_DUPLICATE_KEY}, /* deleted earlier, put later */
        {"( p:a | ) ( d:a | )", 0},                 /* put earlier, deleted later: not seen */
        {"( p:a | ) ( | d:a,b ) p:c", 0},
        {"( | ( p:k | ) ) ( ( | p:k ) | )", ERR_DUPLICATE_KEY},
        {"( ( p:k | p:k ) | ( p:k | p:k ) )", 0},
        {"( ( p:k | ) p:k | )", ERR_DUPLICATE_KEY}, /* inside a nested one */
        {"( ( d:a,c | ) | ) ( p:b | )", ERR_DUPLICATE_KEY},
        /* other checks come first */
        {"p:a p:a p:.", ERR_KEY_EMPTY},
        {"p:a p:a | !", ERR_KEY_NOT_FOUND},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int err = txn_check_args(parse(cases[i].txn), 128);

        if (err != cases[i].err)
            printf("# %s: %s\n", cases[i].txn, err ? err_info(err).text : "accepted");
        CHECK(err == cases[i].err);
        arena_fini(&ar);
    }
}

static void sizes(void)
{
    TxnRequest *t = parse("p:a p:b ( p:c p:d | )");

    CHECK(txn_check_args(t, 3) == ERR_TOO_MANY_OPS); /* 3 here, nothing left for the 2 nested */
    CHECK(txn_check_args(t, 4) == ERR_TOO_MANY_OPS);
    CHECK(txn_check_args(t, 5) == 0);
    CHECK(txn_check_args(t, 2) == ERR_TOO_MANY_OPS);
    CHECK(txn_check_args(parse("p:a | p:a p:b p:c"), 2) == ERR_TOO_MANY_OPS);
    CHECK(txn_check_args(parse(""), 0) == 0);
    arena_fini(&ar);
}

static void depth(void)
{
    TxnRequest *t = parse("p:a");

    for (int i = 1; i < LIMIT_TXN_DEPTH; i++) {
        TxnRequest *outer = parse("( | )");

        outer->success[0]->request_txn = t;
        t = outer;
    }
    CHECK(txn_check_args(t, 128) == 0);
    {
        TxnRequest *outer = parse("( | )");

        outer->success[0]->request_txn = t;
        CHECK(txn_check_args(outer, 128) == ERR_TOO_DEEP);
    }
    arena_fini(&ar);
}

static void puts_alone(void)
{
    Etcdserverpb__PutRequest put = ETCDSERVERPB__PUT_REQUEST__INIT;

    put.ignore_value = put.ignore_lease = true;
    put.value = (ProtobufCBinaryData){1, (uint8_t *)"v"};
    put.lease = 1;
    CHECK(txn_check_put(&put) == ERR_KEY_EMPTY);
    put.key = (ProtobufCBinaryData){1, (uint8_t *)"k"};
    CHECK(txn_check_put(&put) == ERR_VALUE_PROVIDED);
    put.value.len = 0;
    CHECK(txn_check_put(&put) == ERR_LEASE_PROVIDED);
    put.lease = 0;
    CHECK(txn_check_put(&put) == 0);
}

static void kinds(void)
{
    TxnRequest *t;

    CHECK(txn_read_only(parse("")) && txn_serializable(parse("")));
    t = parse("g:a | g:b");
    CHECK(txn_read_only(t) && !txn_serializable(t));
    t->success[0]->request_range->serializable = t->failure[0]->request_range->serializable = true;
    CHECK(txn_serializable(t));
    CHECK(!txn_read_only(parse("g:a | p:a")));
    CHECK(!txn_read_only(parse("( g:a | )"))); /* nested: through the log */
    CHECK(txn_cost(parse("g:a d:b")) == 0);
    CHECK(txn_cost(parse("p:abc | p:a p:b")) == 2 * 257);
    CHECK(txn_cost(parse("( p:abc | p:a p:b ) p:x")) == 3 * 257);
    arena_fini(&ar);
}

/* As slow as etcd at worst: 128 nested txns, each with many overlapping deletes and puts, in well under a second. */
static void large(void)
{
    TxnRequest *t = parse("");
    enum { NESTED = 128, EACH = 128 };
    char *keys = arena_alloc(&ar, (size_t)NESTED * EACH * 8);

    t->success = arena_alloc(&ar, NESTED * sizeof *t->success);
    for (int i = 0; i < NESTED; i++) {
        RequestOp *op = t->success[t->n_success++] = parse("( | )")->success[0];

        op->request_txn->success = arena_alloc(&ar, EACH * sizeof *op->request_txn->success);
        for (int k = 0; k < EACH; k++) {
            const char *s = "d:x";
            RequestOp *d = parse_op(&s);

            d->request_delete_range->key.data = (uint8_t *)&keys[(i * EACH + k) * 8];
            d->request_delete_range->key.len =
                (size_t)snprintf(&keys[(i * EACH + k) * 8], 8, "%07d", (k * 7919 + i * 104729) % 1000000);
            op->request_txn->success[op->request_txn->n_success++] = d;
        }
    }
    CHECK(txn_check_args(t, 1000) == 0);
    arena_fini(&ar);
}

int main(void)
{
    arena_init(&ar, 256 << 20, NULL, 0);
    TEST(arguments);
    TEST(sizes);
    TEST(depth);
    TEST(puts_alone);
    TEST(kinds);
    TEST(large);
    return tap_done();
}
