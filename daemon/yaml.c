/* SPDX-License-Identifier: Apache-2.0 */
/* yaml.c - the one door to libyaml: a configuration file as keys and scalar values.
 *
 * The file is one mapping. A nested mapping's keys come as "outer.inner"; a sequence's scalars are joined by commas
 * (etcd's lists are comma strings as flags). Anything deeper is refused. JSON is YAML, so it works as well. */
#include "config.h"
#include <stdio.h>
#include <yaml.h>

enum { KEY_BYTES = 256, LIST_BYTES = 8192, ERROR_BYTES = 512 };

struct reader {
    yaml_parser_t parser;
    yaml_event_t event;
    bool has_event;
    struct arena *arena;
    const char *(*set)(void *ctx, const char *key, const char *value);
    void *ctx;
};

static const char *say(struct reader *r, const char *what, size_t line)
{
    char *text = arena_alloc(r->arena, ERROR_BYTES);

    if (text == NULL)
        return "out of memory";
    (void)snprintf(text, ERROR_BYTES, "error converting YAML to JSON: yaml: line %zu: %s", line + 1, what);
    return text;
}

/* The next event in r->event. */
static const char *advance(struct reader *r)
{
    if (r->has_event)
        yaml_event_delete(&r->event);
    r->has_event = yaml_parser_parse(&r->parser, &r->event);
    if (r->has_event)
        return NULL;
    return say(r, r->parser.problem ? r->parser.problem : "cannot be read", r->parser.problem_mark.line);
}

/* The scalars of a sequence whose start is the current event, joined by commas. */
static const char *read_list(struct reader *r, const char *key)
{
    char list[LIST_BYTES];
    size_t len = 0;
    const char *bad;

    while ((bad = advance(r)) == NULL && r->event.type == YAML_SCALAR_EVENT) {
        size_t n = r->event.data.scalar.length;

        if (len + n + 2 > sizeof list)
            return say(r, "the list is too long", r->event.start_mark.line);
        if (len)
            list[len++] = ',';
        memcpy(list + len, r->event.data.scalar.value, n);
        len += n;
    }
    if (bad)
        return bad;
    if (r->event.type != YAML_SEQUENCE_END_EVENT)
        return say(r, "a list may hold only plain values here", r->event.start_mark.line);
    list[len] = '\0';
    return r->set(r->ctx, key, list);
}

/* A mapping whose start is the current event; outer is "" at the top. */
static const char *read_mapping(struct reader *r, const char *outer)
{
    char key[KEY_BYTES];
    const char *bad;

    while ((bad = advance(r)) == NULL && r->event.type == YAML_SCALAR_EVENT) {
        int n = snprintf(key, sizeof key, "%s%s%s", outer, *outer ? "." : "", (char *)r->event.data.scalar.value);

        if (n < 0 || (size_t)n >= sizeof key)
            return say(r, "the key is too long", r->event.start_mark.line);
        if ((bad = advance(r)) != NULL)
            return bad;
        if (r->event.type == YAML_SCALAR_EVENT)
            bad = r->set(r->ctx, key, (char *)r->event.data.scalar.value);
        else if (r->event.type == YAML_SEQUENCE_START_EVENT)
            bad = read_list(r, key);
        else if (r->event.type == YAML_MAPPING_START_EVENT && !*outer)
            bad = read_mapping(r, key);
        else
            bad = say(r, "too deep, or an alias", r->event.start_mark.line);
        if (bad)
            return bad;
    }
    if (bad == NULL && r->event.type != YAML_MAPPING_END_EVENT)
        bad = say(r, "a key must be a plain name", r->event.start_mark.line);
    return bad;
}

const char *config_parse_yaml(struct arena *a, struct slice text,
                              const char *(*set)(void *ctx, const char *key, const char *value), void *ctx)
{
    struct reader r = {.arena = a, .set = set, .ctx = ctx};
    const char *bad = NULL;

    if (!yaml_parser_initialize(&r.parser))
        return "out of memory";
    yaml_parser_set_input_string(&r.parser, text.ptr, text.len);
    while (bad == NULL && (bad = advance(&r)) == NULL && r.event.type != YAML_STREAM_END_EVENT) {
        if (r.event.type == YAML_MAPPING_START_EVENT)
            bad = read_mapping(&r, "");
        else if (r.event.type == YAML_SCALAR_EVENT && r.event.data.scalar.length)
            bad = say(&r, "expected names and values", r.event.start_mark.line);
        else if (r.event.type == YAML_SEQUENCE_START_EVENT)
            bad = say(&r, "expected names and values, not a list", r.event.start_mark.line);
    }
    if (r.has_event)
        yaml_event_delete(&r.event);
    yaml_parser_delete(&r.parser);
    return bad;
}
