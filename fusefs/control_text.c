/* SPDX-License-Identifier: Apache-2.0 */
/* control_text.c - .etcd/status, revision, errors, config: text made at open. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control_private.h"
#include "overlay.h"

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static bool is_utf8(struct slice s)
{
    for (size_t i = 0; i < s.len;) {
        uint8_t c = s.ptr[i];
        size_t n = c < 0x80                ? 1
                   : c >= 0xc2 && c < 0xe0 ? 2
                   : c >= 0xe0 && c < 0xf0 ? 3
                   : c >= 0xf0 && c < 0xf5 ? 4
                                           : 0;

        if (n == 0 || i + n > s.len)
            return false;
        for (size_t k = 1; k < n; k++)
            if ((s.ptr[i + k] & 0xc0) != 0x80)
                return false;
        if ((c == 0xe0 && s.ptr[i + 1] < 0xa0) || (c == 0xed && s.ptr[i + 1] > 0x9f) ||
            (c == 0xf0 && s.ptr[i + 1] < 0x90) || (c == 0xf4 && s.ptr[i + 1] > 0x8f))
            return false; /* overlong, a surrogate, or beyond U+10FFFF */
        i += n;
    }
    return true;
}

static void base64(FILE *f, struct slice s)
{
    for (size_t i = 0; i < s.len; i += 3) {
        size_t n = s.len - i;
        uint32_t v =
            (uint32_t)s.ptr[i] << 16 | (n > 1 ? (uint32_t)s.ptr[i + 1] << 8 : 0) | (n > 2 ? s.ptr[i + 2] : 0);

        fprintf(f, "%c%c%c%c", digits[v >> 18], digits[v >> 12 & 63], n > 1 ? digits[v >> 6 & 63] : '=',
                n > 2 ? digits[v & 63] : '=');
    }
}

void json_field(FILE *f, const char *name, struct slice s)
{
    if (!is_utf8(s)) {
        fprintf(f, "\"%s_base64\":\"", name);
        base64(f, s);
        fputc('"', f);
        return;
    }
    fprintf(f, "\"%s\":\"", name);
    for (size_t i = 0; i < s.len; i++) {
        uint8_t c = s.ptr[i];

        if (c == '"' || c == '\\')
            fprintf(f, "\\%c", c);
        else if (c == '\n')
            fputs("\\n", f);
        else if (c < 0x20 || c == 0x7f)
            fprintf(f, "\\u%04x", c);
        else
            fputc(c, f);
    }
    fputc('"', f);
}

static void text_status(const struct control *c, FILE *f)
{
    const struct fs *fs = c->fs;
    struct client_health h;
    struct tree_stats t;
    struct feed_stats w;
    struct injector_stats i;
    struct notify_stats n;
    struct overlay_stats o;
    int64_t now = client_now_ms();

    client_get_health(fs->client, &h);
    tree_get_stats(fs->tree, &t);
    feed_get_stats(fs->feed, &w);
    injector_pool_get_stats(fs->injectors, &i);
    notify_get_stats(fs->notify, &n);
    overlay_get_stats(fs->overlay, &o);
    fputs("{\n  ", f);
    json_field(f, "endpoint", slice_str(h.endpoint ? h.endpoint : ""));
    fputs(",\n  \"endpoints\": {", f);
    for (unsigned k = 0; k < h.n_endpoints; k++) {
        const char *name, *state = client_endpoint_state(fs->client, k, &name);

        fputs(k ? ", " : "", f);
        json_field(f, name, slice_str(state));
    }
    fprintf(
        f,
        "},\n  \"connected\": %s,\n  \"quorum\": %s,\n  \"cluster_id\": \"%lx\",\n  \"member_id\": \"%lx\",\n"
        "  \"raft_term\": %lu,\n  \"revision\": %ld,\n  \"watch\": {\"standing\": %s, \"revision\": %ld, "
        "\"stale_ms\": %ld,"
        " \"events\": %lu, \"gaps\": %lu, \"restarts\": %lu, \"own\": %lu},\n",
        h.connected ? "true" : "false", h.in_doubt ? "false" : "true", h.cluster_id, h.member_id, h.raft_term,
        h.last_revision, w.watching ? "true" : "false", w.rev, w.stale_since_ms ? now - w.stale_since_ms : 0L,
        w.events, w.gaps, w.restarts, w.own);
    fprintf(
        f,
        "  \"tree\": {\"nodes\": %lu, \"present\": %lu, \"directories_loaded\": %lu, \"unloads\": %lu, \"value_bytes\": %lu,"
        " \"unmapped_keys\": %lu},\n",
        t.nodes, t.present, t.dirs_loaded, t.unloads, t.value_bytes, t.unmapped);
    fprintf(
        f,
        "  \"handles\": %lu,\n  \"commits\": {\"done\": %lu, \"failed\": %lu, \"under_way\": %lu},\n"
        "  \"overlay\": {\"files\": %lu, \"bytes\": %lu, \"published\": %lu, \"dropped\": %lu, \"names\": [",
        fs->n_handles, fs->n_commits, fs->n_commits_failed, fs->commits_in_flight, o.files, o.bytes,
        o.published, o.dropped);
    for (const struct ofile *of = overlay_first(fs->overlay), *first = of; of; of = of->next)
        if (of->linked) {
            fputs(of == first ? "{" : ", {", f);
            json_field(f, "name", slice_str(of->name));
            fputc('}', f);
        }
    fprintf(f,
            "]},\n  \"injectors\": {\"alive\": %u, \"injected\": %lu, \"failed\": %lu, \"dropped\": %lu, "
            "\"coalesced\": %lu,"
            " \"killed\": %lu, \"waiting\": %u},\n",
            i.alive, i.injected, i.failed, i.dropped, i.coalesced, i.killed, i.waiting);
    fprintf(f,
            "  \"invalidations\": {\"done\": %lu, \"waiting\": %u, \"raced\": %lu, \"skipped_unknown\": %lu,"
            " \"skipped_unwatched\": %lu, \"scans\": %lu},\n",
            n.invalidated, n.waiting, n.raced, n.skipped_unknown, n.skipped_unwatched, n.scans);
    fprintf(f, "  \"calls\": {\"under_way\": %u, \"total\": %lu, \"failed\": %lu, \"failovers\": %lu}\n}\n",
            h.calls, h.calls_total, h.failed_total, h.failovers_total);
}

char *control_text(struct control *c, enum cnode_kind kind, size_t *ret_len)
{
    struct client_health h;
    char *text = NULL;
    FILE *f = open_memstream(&text, ret_len);

    if (f == NULL)
        return NULL;
    switch (kind) {
    case CNODE_STATUS:
        text_status(c, f);
        break;
    case CNODE_REVISION:
        client_get_health(c->fs->client, &h);
        fprintf(f, "%ld\n", h.last_revision);
        break;
    case CNODE_ERRORS:
        for (uint64_t i = c->n_errors > ERRORS_MAX ? c->n_errors - ERRORS_MAX : 0; i < c->n_errors; i++)
            fputs(c->errors[i % ERRORS_MAX] ? c->errors[i % ERRORS_MAX] : "", f);
        break;
    default:
        config_print(c, f);
        break;
    }
    return fclose(f) == 0 ? text : NULL;
}
