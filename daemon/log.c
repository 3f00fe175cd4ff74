/* SPDX-License-Identifier: Apache-2.0 */
/* log.c - one JSON object a line on stderr.
 *
 * A line is built in a buffer of fixed size and leaves by one write(2), so that lines of several threads never mix.
 * A line that does not fit is cut inside its last string value and stays valid JSON. */
#include "log.h"
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES = 4096, LINE_RESERVE = 8 };

struct line {
    char text[LINE_BYTES];
    size_t len;
};

static _Atomic int log_level = LOG_LEVEL_INFO;

static void put(struct line *l, const char *s, size_t n)
{
    size_t room = LINE_BYTES - LINE_RESERVE - l->len;

    if (n > room)
        n = room;
    memcpy(l->text + l->len, s, n);
    l->len += n;
}

static void put_str(struct line *l, const char *s)
{
    put(l, s, strlen(s));
}

/* The inside of a JSON string. Bytes over 0x7f pass when they could be UTF-8; the rest becomes \u00XX. */
static void put_escaped(struct line *l, const uint8_t *s, size_t n)
{
    char esc[8];

    for (size_t i = 0; i < n && l->len < LINE_BYTES - LINE_RESERVE - sizeof esc; i++) {
        if (s[i] == '"' || s[i] == '\\') {
            esc[0] = '\\', esc[1] = (char)s[i];
            put(l, esc, 2);
        } else if (s[i] < 0x20 || s[i] >= 0x7f) {
            put(l, esc, (size_t)snprintf(esc, sizeof esc, "\\u%04x", s[i]));
        } else {
            put(l, (const char *)&s[i], 1);
        }
    }
}

static void put_field(struct line *l, const struct log_field *f)
{
    char number[32];
    int n = 0;

    put_str(l, ",\"");
    put_str(l, f->key);
    put_str(l, "\":");
    switch (f->kind) {
    case LOG_FIELD_STR:
    case LOG_FIELD_SLICE:
        put_str(l, "\"");
        if (f->kind == LOG_FIELD_STR)
            put_escaped(l, (const uint8_t *)f->str, f->str ? strlen(f->str) : 0);
        else
            put_escaped(l, f->slice.ptr, f->slice.len);
        /* The closing quote has room kept for it even in a full line. */
        l->text[l->len++] = '"';
        return;
    case LOG_FIELD_INT:
        n = snprintf(number, sizeof number, "%lld", (long long)f->i);
        break;
    case LOG_FIELD_UINT:
        n = snprintf(number, sizeof number, "%llu", (unsigned long long)f->u);
        break;
    case LOG_FIELD_HEX:
        n = snprintf(number, sizeof number, "\"%llx\"", (unsigned long long)f->u);
        break;
    case LOG_FIELD_BOOL:
        n = snprintf(number, sizeof number, "%s", f->u ? "true" : "false");
        break;
    }
    put(l, number, (size_t)n);
}

static void put_time(struct line *l)
{
    struct timespec ts;
    struct tm tm;
    char text[40];
    size_t n;

    (void)clock_gettime(CLOCK_REALTIME, &ts);
    (void)gmtime_r(&ts.tv_sec, &tm);
    n = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &tm);
    n += (size_t)snprintf(text + n, sizeof text - n, ".%06ldZ", ts.tv_nsec / 1000);
    put(l, text, n);
}

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&log_level, (int)level, memory_order_relaxed);
}

bool log_enabled(enum log_level level)
{
    return (int)level >= atomic_load_explicit(&log_level, memory_order_relaxed);
}

void log_write(enum log_level level, const char *file, int line, const char *msg, const struct log_field *fields)
{
    static const char *const names[] = {"debug", "info", "warn", "error", "fatal"};
    struct line l = {.len = 0};
    char at[16];

    if (!log_enabled(level))
        return;
    put_str(&l, "{\"level\":\"");
    put_str(&l, names[level]);
    put_str(&l, "\",\"ts\":\"");
    put_time(&l);
    put_str(&l, "\",\"caller\":\"");
    put_str(&l, file);
    put(&l, at, (size_t)snprintf(at, sizeof at, ":%d", line));
    put_str(&l, "\",\"msg\":\"");
    put_escaped(&l, (const uint8_t *)msg, strlen(msg));
    put_str(&l, "\"");
    for (const struct log_field *f = fields + 1; f->key; f++)
        if (l.len < LINE_BYTES - 256)
            put_field(&l, f);
    l.text[l.len++] = '}';
    l.text[l.len++] = '\n';
    (void)!write(STDERR_FILENO, l.text, l.len); /* nobody to tell */
}
