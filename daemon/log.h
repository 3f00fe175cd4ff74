/* SPDX-License-Identifier: Apache-2.0 */
/* log.h - one JSON object a line on stderr, in the shape of etcd's zap logger.
 *
 *     {"level":"info","ts":"2026-11-21T12:43:25.707919Z","caller":"daemon/turn.c:103","msg":"became leader","term":2}
 *
 * Only the daemon's outer functions log; whatever returns an error does not also log it. One line per event, no
 * line per request at info. Any thread.
 *
 *     log_info("apply: compaction finished", LOG_INT("revision", rev), LOG_STR("took", "12ms"));
 */
#pragma once
#include "bytes.h"

enum log_level { LOG_LEVEL_DEBUG, LOG_LEVEL_INFO, LOG_LEVEL_WARN, LOG_LEVEL_ERROR, LOG_LEVEL_FATAL };

struct log_field {
    const char *key; /* NULL ends the list */
    enum { LOG_FIELD_STR, LOG_FIELD_SLICE, LOG_FIELD_INT, LOG_FIELD_UINT, LOG_FIELD_HEX, LOG_FIELD_BOOL } kind;
    union {
        const char *str;
        struct slice slice;
        int64_t i;
        uint64_t u;
    };
};
#define LOG_STR(k, v)   {.key = (k), .kind = LOG_FIELD_STR, .str = (v)}
#define LOG_SLICE(k, v) {.key = (k), .kind = LOG_FIELD_SLICE, .slice = (v)}
#define LOG_INT(k, v)   {.key = (k), .kind = LOG_FIELD_INT, .i = (v)}
#define LOG_UINT(k, v)  {.key = (k), .kind = LOG_FIELD_UINT, .u = (v)}
#define LOG_HEX(k, v)   {.key = (k), .kind = LOG_FIELD_HEX, .u = (v)} /* an id, as etcd prints it */
#define LOG_BOOL(k, v)  {.key = (k), .kind = LOG_FIELD_BOOL, .u = (v)}

void log_set_level(enum log_level level);
bool log_enabled(enum log_level level);
/* fields[0] is skipped: it lets the macros take no fields at all. */
void log_write(enum log_level level, const char *file, int line, const char *msg, const struct log_field *fields);

#define log_at(level, msg, ...) \
    log_write(level, __FILE__, __LINE__, msg, (const struct log_field[]){{.key = ""}, ##__VA_ARGS__, {.key = NULL}})
#define log_debug(msg, ...) \
    do { \
        if (log_enabled(LOG_LEVEL_DEBUG)) \
            log_at(LOG_LEVEL_DEBUG, msg, ##__VA_ARGS__); \
    } while (0)
#define log_info(msg, ...)  log_at(LOG_LEVEL_INFO, msg, ##__VA_ARGS__)
#define log_warn(msg, ...)  log_at(LOG_LEVEL_WARN, msg, ##__VA_ARGS__)
#define log_error(msg, ...) log_at(LOG_LEVEL_ERROR, msg, ##__VA_ARGS__)
