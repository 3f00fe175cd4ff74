/* SPDX-License-Identifier: Apache-2.0 */
/* config_flags.h - the table of flags: what config.c and config_flags.c share. */
#pragma once
#include "config.h"

enum kind { STRING, UINT, INT, DURATION, URLS, ENUM, BOOL, LATER, LATER_BOOL, IGNORED, ACTION_HELP, ACTION_VERSION };

struct flag {
    const char *name;
    enum kind kind;
    size_t offset;         /* in struct config */
    const char *initial;   /* the default, as text; LATER: the only value accepted, besides "" */
    const char *choices;   /* ENUM: "a|b" */
    const char *help;
};

#define AT(field) offsetof(struct config, field)

enum { FLAGS_MAX = 192 }; /* rows that the table may have */
extern const struct flag config_flags[];
extern const size_t config_n_flags;

int flag_find(const char *name, size_t len);  /* its row, or -1 */
bool flag_is_switch(const struct flag *f);    /* it may stand without a value */
/* Puts text into its field, borrowed. NULL, or what is wrong. ns: durations are plain nanoseconds (the file). */
const char *flag_store(struct config *c, const struct flag *f, const char *text, bool ns);

int flag_parse_bool(const char *s); /* 0, 1; -1: neither */
const char *flag_parse_integer(const char *s, bool is_signed, uint64_t *ret_v); /* NULL, or what is wrong */
