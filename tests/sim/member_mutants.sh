#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Plants known bugs into the daemon and the core, each a line or two, and asks the simulation of whole members, the
# crash states, or where neither can see it a test of that part, to find it (RELIABILITY A.6). Says how many seeds and seconds that took.
#
#     make mutants          O=build LIBS=... tests/sim/member_mutants.sh [PATTERN]      exit 0: every one was caught
cd "$(dirname "$0")/../.." || exit 1
O=${O:-build} pattern=${1:-.} seeds=${SEEDS:-20000} limit_s=${LIMIT_S:-600} missed=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
cp -p daemon/*.h raftcore/*.h "$tmp" # beside the mutated file: with -iquote <limits.h> would be daemon's
read -ra cc <<<"${CC:-gcc} -std=c11 -D_GNU_SOURCE -O2 -w -pthread -Iinclude -I$O/proto -I. -Itests"
read -ra libs <<<"${LIBS:-$(pkg-config --libs grpc) -lprotobuf-c -llmdb -lmicrohttpd -lyaml -lssl -lcrypto -lm}"

mutant() { # name program file sed-script [file sed-script]
    local name=$1 program=$2 objects=() from=$SECONDS first=1000 seed
    [[ $name =~ $pattern ]] || return
    shift 2
    while [ $# -gt 0 ]; do
        sed "$2" "$1" >"$tmp/${1##*/}"
        if cmp -s "$1" "$tmp/${1##*/}"; then
            echo "not ok - $name: the mutation of $1 does not apply"
            missed=1
            return
        fi
        objects+=("$tmp/${1##*/}")
        shift 2
    done
    if ! "${cc[@]}" -o "$tmp/sim" "$O/tests/unit/$program.o" "${objects[@]}" "$O/libdaemon.a" "$O/libraftcore.a" \
        "$O/libproto.a" "${libs[@]}" 2>"$tmp/out"; then
        echo "not ok - $name: does not compile: $(head -1 "$tmp/out")"
        missed=1
        return
    fi
    from=$SECONDS
    if STOP=1 SEED=$first SEEDS=$seeds timeout "$limit_s" "$tmp/sim" >"$tmp/out" 2>&1; then
        echo "not ok - $name: $program found nothing"
        missed=1
        return
    fi
    if [[ $program != sim* ]]; then # an ordinary test of the part: it must say what is wrong
        if grep -qaE '^not ok|Assertion' "$tmp/out"; then
            echo "ok - $name: $((SECONDS - from)) s, tests/unit/$program: $(grep -m1 -aoE '^not ok.*|Assertion.*' "$tmp/out")"
        else
            echo "not ok - $name: $program found nothing in $((SECONDS - from)) s"
            missed=1
        fi
        return
    fi
    seed=$(grep -m1 -aoE 'SEED=[0-9]+( at|:|, state)' "$tmp/out" | grep -oE '[0-9]+' | head -1)
    if [ -z "$seed" ]; then
        echo "not ok - $name: $((SECONDS - from)) s found nothing"
        missed=1
    else
        echo "ok - $name: $((SECONDS - from)) s, $([ "$program" = sim ] && echo "$((seed > first ? seed - first + 1 : 1)) seeds, ")$(
            grep -m1 -aE '^# SEED=[0-9]+( at|:|, state)' "$tmp/out" | sed -E 's/^# SEED=[0-9]+( at [0-9.]+ ms)?[,:]? ?//' | cut -c1-110)"
    fi
    rm -f "$tmp"/*.c
}

mutant '1 acknowledged before the sync'            sim daemon/turn_wal.c 's/err = wal_sync(t->o.wal);/err = 0;/'
mutant '1 a sync that is none'                     sim_crash daemon/wal.c 's/err = w->disk->fdatasync(w->disk, s->file);/err = 0;/'
mutant '2 applied index committed by itself'       sim daemon/base_flush.c 's/err = base_error(mdb_cursor_open(f.txn, b->dbi\[BASE_INDEX\], &f.index));/err = base_seal_write(b, f.txn, delta_sealed(d)); if (!err) err = base_error(mdb_txn_commit(f.txn)); if (!err) err = base_error(mdb_txn_begin(b->env, NULL, 0, \&f.txn)); if (!err) err = base_error(mdb_cursor_open(f.txn, b->dbi[BASE_INDEX], \&f.index));/'
mutant '3 log cut at the first bad crc'            sim daemon/wal_record.c 's/    return WAL_BAD;$/    return WAL_TORN;/; s/? WAL_TORN : WAL_BAD;/? WAL_TORN : WAL_TORN;/' daemon/wal_open.c 's/wal_find_batch(/0 \&\& wal_find_batch(/'
mutant '4 vote not stored'                         sim daemon/turn.c 's/    j->has_hard = out->flags & RAFT_OUT_STATE;/    j->has_hard = false;/'
mutant '5 older entries committed by count'        sim raftcore/leader.c 's/ || termlog_term(&r->log, index) != r->term)$/)/'
mutant '6 read index without a quorum'             sim raftcore/read.c 's/    reached = raft_quorum_reached(r, read_ack_of);/    reached = r->read_seq;/'
mutant '7 a late answer confirms a newer round'     sim raftcore/read.c 's/    p->read_ack = seq;/    p->read_ack = r->read_seq;/; s/if (seq <= p->read_ack)/if (0)/'
mutant '8 reads by a lease that outlives elections' sim daemon/turn.c 's/        .heartbeat_ms = t->o.heartbeat_ms,$/        .heartbeat_ms = t->o.heartbeat_ms, .lease_reads = true,/' raftcore/read.c 's@ - r->election_ms / 10;@ * 3;@'
mutant '9 conflicting suffix not cut'              sim raftcore/follower.c 's/while (i <= m->last && i <= r->log.last && termlog_term(&r->log, i) == msg_term(m, i))/while (i <= m->last \&\& i <= r->log.last)/'
mutant '11 old configuration after a snapshot'     sim raftcore/output.c 's/^    raft_set_conf(r, conf);$/    (void)conf;/'
mutant '12 learners counted in the quorum'         sim raftcore/members.c 's/    uint64_t a = half_reached(r, &r->conf.voters, of)/    struct raft_set all = r->conf.voters; for (uint32_t i = 0; i < r->conf.learners.n; i++) if (all.n < RAFT_MEMBERS_MAX) all.ids[all.n++] = r->conf.learners.ids[i]; uint64_t a = half_reached(r, \&all, of)/'
mutant '13 two changes of the configuration at once' sim raftcore/leader.c 's/    if (r->conf_pending > r->applied)/    if (0)/'
mutant '14 a removed member stands and leads'      sim raftcore/election.c 's/return r->role != RAFT_LEADER \&\& raft_is_voter(r, r->id) \&\& /return r->role != RAFT_LEADER \&\& /'
mutant '15 directory not synced'                   sim_crash daemon/wal_segment.c 's/err = w->disk->fsync_dir(w->disk, w->dir);/err = 0;/'
mutant '15a a base adopted, its name not synced'   sim_install daemon/datadir.c 's/return renameat(d->fd, "incoming", d->fd, name) < 0 || fsync(d->fd) < 0/return renameat(d->fd, "incoming", d->fd, name) < 0/'
mutant '15b CURRENT renamed before it is synced'   sim_install daemon/datadir.c 's/    if (write(fd, text, n) != (ssize_t)n || fsync(fd) < 0)/    if (write(fd, text, n) != (ssize_t)n)/'
mutant '15c CURRENT renamed, its directory not synced' sim_install daemon/datadir.c 's/    if (rc == 0 \&\& fsync(d->fd) < 0)/    if (0)/'
mutant '15d a received base not synced'            sim_install daemon/base_copy.c 's/err = base_error(mdb_env_sync(b->env, 1));/err = 0;/; s/return err ? err : base_sync_dir(path);/return err;/'
mutant '15e a received base without its directory synced' sim_install daemon/base.c 's/"data.mdb", "."}/"data.mdb", "data.mdb"}/'
mutant '15f a new log without its directory synced' sim_install daemon/wal.c 's/err = o->disk->fsync_dir(o->disk, o->dir);/err = 0;/'
mutant '15g a new log without its own name synced' sim_install daemon/wal.c 's/err = o->disk->fsync_dir(o->disk, parent);/err = 0;/'
mutant '15h the old base removed before the switch' sim_install daemon/snap_install.c 's/        err = datadir_switch_both(p->dir, base_n, wal_n);/        err = (datadir_remove_base(p->dir, p->dir->base), datadir_switch_both(p->dir, base_n, wal_n));/'
mutant '15i CURRENT renamed before the log is made' sim_install daemon/snap_install.c 's/    err = wal_create(&o, index, term, hard);/    err = datadir_switch_both(p->dir, base_n, wal_n);/; s/        err = datadir_switch_both(p->dir, base_n, wal_n);/        err = wal_create(\&o, index, term, hard);/'
mutant '15j CURRENT believed before it is synced'  sim_install daemon/datadir.c 's/sync_names(d) < 0 || //'
mutant '15k base and log switched one by one'      sim_install daemon/snap_install.c 's/        err = datadir_switch_both(p->dir, base_n, wal_n);/        err = (datadir_switch_both(p->dir, base_n, p->dir->wal), datadir_switch_both(p->dir, base_n, wal_n));/'
mutant '15l a store that never syncs'              sim_install daemon/base.c 's/MDB_NOTLS | (o->no_sync ? MDB_NOSYNC : 0)/MDB_NOTLS | MDB_NOSYNC/'
mutant '15m a first store without its name synced' sim_found daemon/base.c 's/    if (err == 0 \&\& !o->no_sync)/    if (0)/'
mutant '15n directories made and not synced'       sim_found daemon/datadir.c 's/    if (sync_path(d, d->path) < 0 || sync_path(d, d->wal_root) < 0)/    if (0)/'
mutant '15o CREATING not synced'                   sim_found daemon/datadir.c '/"CREATING", O_WRONLY/,/return fail/s/ || fsync(d->fd) < 0//'
mutant '15p a creation broken off is no leftover'  sim_found daemon/wal.c 's/    if (is_used(/    if (1 || is_used(/'
mutant '15q CURRENT before the log is there'       sim_found daemon/bootstrap.c 's/^    rc = make_base(b, \&r, path);/    rc = make_base(b, \&r, path); rc = rc ? rc : datadir_commit(\&b->dir);/'
mutant '16 a failed sync tried again'              sim daemon/wal.c 's/        w->failed = true; \/\* the kernel may have.*/        return w->disk->fdatasync(w->disk, s->file);/'
mutant '17 a torn page is believed'                base_torn daemon/base_row.c 's/    if (row_crc(t, key, value) != get_u32le(v.ptr + value.len))/    if (0)/'
mutant '18 a batch of an older segment is believed' sim_crash daemon/wal_record.c 's/ || (nonce \&\& b.nonce != nonce) || / || /' daemon/wal_open.c 's/    if (b->number != w->last_batch + 1 || b->prev_crc != w->last_crc)/    if (0)/'
mutant '18a blocks of an older segment in a new one' sim_crash daemon/wal_segment.c '/fallocate(w->disk, s->file, to)/,/next_name/s/err = w->disk->fdatasync(w->disk, s->file);/err = 0;/'
mutant '25 progress is told before the events'      sim daemon/hub_request.c 's/return w->state == WATCHER_LIVE \&\& w->start_rev <= h->seen;/return w->start_rev <= h->seen;/'
mutant '26 an event twice when level again'         sim daemon/hub_feed.c 's/            w->min_rev = h->batch.to + 1; .. at once.*/            w->min_rev = h->batch.to;/; s/if (err == 0 \&\& w->min_rev <= h->batch.to)/if (err == 0 \&\& w->min_rev < h->batch.to)/'
mutant '28 events before the revision asked for'    sim daemon/hub_feed.c 's/        if (w->state != WATCHER_LIVE || w->min_rev > main)/        if (w->state != WATCHER_LIVE)/'
mutant 'watch of what is compacted goes on'         sim daemon/hub.c 's/        if (w->min_rev < compact_rev)/        if (0)/'
mutant '31 leases end by what an old leader knew'  sim daemon/lease.c 's/            l->expiry_ms = l->due_ms = after(now_ms, ttl_s) + extend_ms;/            l->due_ms = l->expiry_ms;/'
mutant '31 an expiry ends the next lease of its id'  sim daemon/turn_lease.c 's/    if (n == 0 || !grants_under_way(t, marks, n))/    if (n == 0)/'
mutant '32 time to live begins anew'               lease daemon/lease.c 's/int64_t ttl_s = l->checkpoint_s > 0 ? l->checkpoint_s : l->ttl_s;/int64_t ttl_s = l->ttl_s;/'
mutant '33 renewed after it was revoked'           sim daemon/turn_lease.c 's/t->own_applied \&\& !q->certain \&\& !turn_reads_free(t)/0/'
mutant '41 a message of another cluster'            peers daemon/peers_in.c 's/    if (cluster != p->options.cluster_id) {/    if (0) {/'
mutant '42 a proposal tried twice'                 sim daemon/turn_propose.c 's/    if (heard_before(t, m) || m->index <= t->o.wal_state.term) {/    if (0) {/'
mutant 'a renamed key loses its lease'              sim daemon/txn_rename.c 's/\.version = 1, \.lease = k->lease}/.version = 1}/'
mutant 'the last key of a directory is not moved'   sim daemon/txn_rename.c 's/err = put_found(x, req, &f->keys\[i\]);/err = i \&\& i + 1 == f->n ? 0 : put_found(x, req, \&f->keys[i]);/'
mutant 'a rename of what is newer than was read'    sim daemon/txn_rename.c 's/        if (c.rev.main > req->revision)/        if (0)/'
mutant 'a rename of one key more than the limit'    sim daemon/txn_rename.c 's/f->n > LIMIT_RENAME_KEYS/f->n > LIMIT_RENAME_KEYS + 1/'
mutant 'a rename in the reverse order of its keys'  sim daemon/txn_rename.c 's/    for (size_t i = 0; !err \&\& i < f->n; i++)$/    for (size_t i = f->n; !err \&\& i-- > 0;)/'
mutant 'unstored entries leave the cache'           sim daemon/entry.c 's/    if (e->index < c->keep_from)/    if (0)/'
mutant 'a faulty member votes'                      sim raftcore/election.c 's/ || r->fence) {/) {/'
mutant 'a faulty member stands'                     sim raftcore/election.c 's/ \&\& r->fence == 0 \&\& / \&\& /'
mutant 'repaired by what is older than the fence'   sim raftcore/raft.c 's/termlog_term(&r->log, r->apply_to) > r->fence)/r->apply_to)/'
mutant 'a state that differs is not named'          sim daemon/snap_check.c 's/        if (r->members\[i\].known \&\& r->members\[i\].hash != r->members\[right\].hash)/        if (0)/'
mutant 'the state of the majority is named'         sim daemon/snap_check.c 's/2 \* count(r, r->members\[i\].hash) > r->n/2 * count(r, r->members[i].hash) < r->n/'
mutant 'an old alarm and a wrong leader are believed' sim daemon/snap_check.c 's/s->is_wrong \&\& is_named/(s->is_wrong || s->differs) \&\& is_named/'
mutant 'an answer is taken for a question'          sim daemon/snap_check.c 's/h->kind == PEER_STATE_HASH \&\& !leads/h->kind != PEER_STATE_WRONG \&\& !leads/'
# 10 is mutants.sh's: the core alone is quicker at it. 18 takes two lines: the nonce and the chain of batches each keep
# a stale batch out by themselves.
exit $missed
