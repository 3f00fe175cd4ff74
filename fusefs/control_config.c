/* SPDX-License-Identifier: Apache-2.0 */
/* control_config.c - .etcd/config: NAME=VALUE lines, read and written.
 *
 * A write holds whole lines. All of them are taken, or none: then it fails with EINVAL and .etcd/errors has
 * a line that says which and why. A line that is in the text already changes nothing, so that the text can
 * be written back as it was read; empty ones and those that begin with # are skipped. What is not in the
 * table below is settled when the mount starts.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control_private.h"
#include "overlay.h"

static const struct choice {
    const char *name;
    size_t at; /* a bool of struct options */
    const char *no, *yes;
} choices[] = {
    {"linear", offsetof(struct options, linear), "0", "1"},
    {"strict", offsetof(struct options, strict), "0", "1"},
    {"meta", offsetof(struct options, meta_ignore), "fail", "ignore"},
    {"commit", offsetof(struct options, commit_write), "close", "write"},
    {"conflict", offsetof(struct options, conflict_fail), "last", "fail"},
    {"dirmarkers", offsetof(struct options, dirmarkers), "off", "on"},
    {"overlay", offsetof(struct options, overlay), "off", "on"},
};
#define N_CHOICES (sizeof choices / sizeof *choices)

static const struct number {
    const char *name;
    size_t at; /* 64 bits of struct options */
    uint64_t unit, max;
} numbers[] = {
    {"grace", offsetof(struct options, grace_ms), 1000, 3600},
    {"max-request-bytes", offsetof(struct options, max_request_bytes), 1, 1u << 30},
};
#define N_NUMBERS (sizeof numbers / sizeof *numbers)

static const char *const list_names[] = {[OFILE_EDITOR] = "overlay-editors",
                                         [OFILE_TEMPORARY] = "overlay-temporary"};

/* What a write asks for, before any of it is done. */
struct wish {
    struct options opt;
    const char *lists[2]; /* borrowed from the text; NULL: as it is */
};

void config_print(const struct control *c, FILE *f)
{
    const struct options *o = &c->fs->opt;

    fprintf(f,
            "# settled when mounted\nsource=%s\nmountpoint=%s\ncached=%d\nevents=%s\ntimeout=%ld\n"
            "# may be written\n",
            o->source, o->mountpoint, o->cached, o->events_modify ? "modify" : "full", o->timeout_ms / 1000);
    for (size_t i = 0; i < N_CHOICES; i++)
        fprintf(f, "%s=%s\n", choices[i].name,
                *(const bool *)((const char *)o + choices[i].at) ? choices[i].yes : choices[i].no);
    for (size_t i = 0; i < N_NUMBERS; i++)
        fprintf(f, "%s=%lu\n", numbers[i].name,
                *(const uint64_t *)((const char *)o + numbers[i].at) / numbers[i].unit);
    for (size_t i = 0; i < 2; i++)
        fprintf(f, "%s=%s\n", list_names[i], overlay_names((enum ofile_class)i));
}

static const char *set_choice(struct wish *w, const struct choice *ch, const char *value)
{
    bool yes = strcmp(value, ch->yes) == 0;

    if (!yes && strcmp(value, ch->no) != 0)
        return "this option does not take that value";
    *(bool *)((char *)&w->opt + ch->at) = yes;
    return NULL;
}

static const char *set_number(struct wish *w, const struct number *nu, const char *value)
{
    char *end;
    unsigned long v = strtoul(value, &end, 10);

    if (*value < '0' || *value > '9' || *end || v > nu->max || (nu->unit == 1 && v == 0))
        return "not a number this option takes";
    *(uint64_t *)((char *)&w->opt + nu->at) = v * nu->unit;
    return NULL;
}

/* NULL, or what is wrong with the line. */
static const char *take_line(struct wish *w, const char *line, const char *now)
{
    size_t name = strcspn(line, "=");
    const char *value = line + name + 1;

    if (line[name] == 0)
        return "expected NAME=VALUE";
    for (size_t i = 0; i < N_CHOICES; i++)
        if (strlen(choices[i].name) == name && strncmp(choices[i].name, line, name) == 0)
            return set_choice(w, &choices[i], value);
    for (size_t i = 0; i < N_NUMBERS; i++)
        if (strlen(numbers[i].name) == name && strncmp(numbers[i].name, line, name) == 0)
            return set_number(w, &numbers[i], value);
    for (size_t i = 0; i < 2; i++)
        if (strlen(list_names[i]) == name && strncmp(list_names[i], line, name) == 0) {
            w->lists[i] = value;
            return strlen(value) > OVERLAY_NAMES_BYTES ? "the list is too long" : NULL;
        }
    for (const char *p = now; p && *p; p = strchr(p, '\n') ? strchr(p, '\n') + 1 : NULL)
        if (strncmp(p, line, name + 1) == 0)
            return strncmp(p, line, strlen(line)) == 0 && p[strlen(line)] == '\n'
                       ? NULL
                       : "this option is settled when the mount starts";
    return "there is no such option";
}

static int apply(struct control *c, const struct wish *w)
{
    int err = 0;

    for (size_t i = 0; i < 2 && err == 0; i++)
        if (w->lists[i])
            err = overlay_names_set((enum ofile_class)i, w->lists[i]);
    if (err)
        return err;
    c->fs->opt = w->opt;
    tree_set_mode(c->fs->tree, w->opt.strict ? READ_STRICT : READ_LINEARIZABLE);
    return 0;
}

int config_write(struct control *c, const char *buf, size_t size)
{
    struct wish w = {.opt = c->fs->opt};
    char *text = strndup(buf, size), *rest = text, *now = NULL;
    size_t len;
    int err = ENOMEM;

    if (text)
        now = control_text(c, CNODE_CONFIG, &len);
    if (now == NULL)
        goto out;
    err = strlen(text) == size ? 0 : EINVAL; /* a NUL is in no line */
    for (char *line; err == 0 && (line = strsep(&rest, "\n")) != NULL;) {
        const char *wrong = *line == 0 || *line == '#' ? NULL : take_line(&w, line, now);

        if (wrong) {
            err = EINVAL;
            control_error(c, "config", line, err, wrong);
        }
    }
    if (err == 0)
        err = apply(c, &w);
out:
    free(now);
    free(text);
    return err;
}
