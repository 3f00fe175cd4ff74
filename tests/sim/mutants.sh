#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Plants known bugs into a copy of the core and asks the simulation to find each (RELIABILITY A.6).
#
#     tests/sim/mutants.sh [RUNS [PATTERN]]       exit 0: every one (whose name matches) was caught
cd "$(dirname "$0")/../.." || exit 1
runs=${1:-6000} pattern=${2:-.} missed=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
cc="${CC:-gcc} -std=c11 -D_GNU_SOURCE -O2 -w -Iinclude -I. -Itests"

mutant() { # name file sed-script
    [[ $1 =~ $pattern ]] || return
    rm -rf "$tmp/core"; cp -r raftcore "$tmp/core"
    sed -i "$3" "$tmp/core/$2"
    if cmp -s "raftcore/$2" "$tmp/core/$2"; then echo "not ok - $1: the mutation does not apply"; missed=1; return; fi
    $cc -o "$tmp/sim" tests/unit/raft_sim.c "$tmp"/core/*.c || { missed=1; return; }
    RUNS=$runs SEED=1 timeout 600 "$tmp/sim" >"$tmp/out" 2>&1
    rc=$?
    if [ $rc = 0 ] || [ $rc = 124 ]; then # nothing, or nothing in time
        # A story that takes many steps, told in a trace: a property must break there, a mere difference does not count.
        $cc -o "$tmp/trace" tests/unit/raft_trace.c "$tmp"/core/*.c && timeout 60 "$tmp/trace" >"$tmp/out" 2>&1
        if grep -q '^BROKEN' "$tmp/out"; then echo "ok - $1: $(grep -m1 '^BROKEN' "$tmp/out"), in a trace"; return; fi
        echo "not ok - $1: $runs runs$([ $rc = 124 ] && echo ', as far as they came,') found nothing"; missed=1
    else
        echo "ok - $1: $(grep -m1 -oE 'SEED=[0-9]+: .*|[A-Za-z]+ broken.*|Assertion.*' "$tmp/out" | tail -1)"
    fi
}

mutant '4a vote said before it is stored'      output.c     's/if (r->stored_seq == r->last_seq) {/if (true) {/'
mutant '4b own vote counted before it is stored' election.c 's/^    r->vote_seq = r->state_seq;/    record_vote(r, r->id, true); ask_votes(r, RAFT_VOTE, r->term); count_votes(r);/'
mutant '4c match said before it is stored'     follower.c 's/r->verified < r->stable ? r->verified : r->stable/r->verified/'
mutant '1 own match counted before it is stored' leader.c 's/self->match < r->stable/self->match < r->log.last/; s/self->match = r->stable/self->match = r->log.last/'
mutant '5 entries of older terms committed by count' leader.c 's/ || termlog_term(&r->log, index) != r->term)$/)/'
mutant '6 read index without a quorum'         read.c     's/    reached = raft_quorum_reached(r, read_ack_of);/    reached = r->read_seq;/'
mutant '7 a late heartbeat reply confirms a newer round' read.c 's/    p->read_ack = seq;/    p->read_ack = r->read_seq;/; s/if (seq <= p->read_ack)/if (0)/'
mutant 'T17 read before a commit of the own term' read.c  's/    if (!leader_confirmed(r))/    if (0)/'
mutant 'T17a a request answered before a commit' read.c  's/    if (leader_confirmed(r) \&\& two_suffice/    if (r->role == RAFT_LEADER \&\& two_suffice/'
mutant '6a a follower and the leader of five'  read.c     's/quorum_vote(yes, 0, halves\[h\]->n) != QUORUM_WON/halves[h]->n \&\& yes < 2/'
mutant '9 conflicting suffix not cut'          follower.c 's/    i <= m->last \&\& i <= r->log.last \&\& termlog_term(&r->log, i) == msg_term(m, i)/i <= m->last \&\& i <= r->log.last/; s/while (i <= m->last && i <= r->log.last && termlog_term(&r->log, i) == msg_term(m, i))/while (i <= m->last \&\& i <= r->log.last)/'
mutant '10 a snapshot over a newer state'       follower.c 's/    if (m->index <= r->commit) {/    if (0) {/; s/    if (termlog_term(\&r->log, m->index) == m->log_term) {/    if (0) {/'
mutant '11 old configuration after a snapshot' output.c     's/^    raft_set_conf(r, conf);$/    (void)conf;/'
mutant '12 learners counted in the quorum'     members.c     's/    uint64_t a = half_reached(r, &r->conf.voters, of)/    struct raft_set all = r->conf.voters; for (uint32_t i = 0; i < r->conf.learners.n; i++) if (all.n < RAFT_MEMBERS_MAX) all.ids[all.n++] = r->conf.learners.ids[i]; uint64_t a = half_reached(r, \&all, of)/'
mutant '13 two configuration changes at once'  leader.c   's/    if (r->conf_pending > r->applied)/    if (0)/'
mutant 'joint: outgoing half ignored'          members.c     's/    return a < b ? a : b;/    return a;/'
mutant 'two votes in one term'                 election.c 's/bool free_to = r->vote == m->from ||/r->vote = 0; bool free_to = true ||/'
mutant 'a shorter log wins votes'              election.c 's/    bool up_to_date = .*/    bool up_to_date = true;/'
mutant 'a faulty member votes'                 election.c 's/ || r->fence) {/) {/'
mutant 'a faulty member stands'                election.c 's/ && r->fence == 0 && / \&\& /'
# 'repaired by what is older than the fence' is member_mutants.sh's: whole members find it in some dozens of seeds.
mutant '8a lease read without a look at the clock' read.c 's/return r->lease_reads && !r->lease_over && r->now < r->lease_until;/return r->lease_reads \&\& r->lease_until;/'
mutant '8b the lease begins when it is confirmed' read.c  's/    r->lease_until = r->lease_at + /    r->lease_until = r->now + /'
mutant '8c votes in spite of a promise'        election.c 's/    return r->lease_reads && r->now < r->deny_until.*/    return false;/'
mutant '8d a transfer keeps the lease'         read.c     's/    r->lease_over = true;//'
mutant 'T1 a write that was cut away counts (ABA)' output.c 's/            s->last = first - 1;/            (void)0;/'
mutant 'a COMMIT is believed for entries not compared' follower.c 's/r->commit_heard < r->verified ? r->commit_heard : r->verified/r->commit_heard < r->log.last ? r->commit_heard : r->log.last/'
mutant 'heartbeats carry the full commit'      leader.c   's/m->commit = p->match < r->commit ? p->match : r->commit;/m->commit = r->commit;/'
exit $missed
