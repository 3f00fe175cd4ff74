/* SPDX-License-Identifier: Apache-2.0 */
/* overlay_names.c - which names are an editor's own, and which have a temporary file's shape (see overlay.h).
 *
 * Two lists of patterns, separated by blanks; .etcd/config can replace them while the mount runs.
 *
 *     editors'     as the shell matches names, but that `*` and `?` match a leading dot too
 *     temporary    ? is one of [A-Za-z0-9_], * at least one byte, and neither matches a leading dot.
 *                  Where nothing but a dot stands before the ?s (`*.??????`, `????????`), they must not be one
 *                  word in lower case: those are names that people give.
 *
 * State: the lists, of the process, which has one mount. Owner: the core thread.
 */
#include <ctype.h>
#include <errno.h>
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

#include "overlay.h"

#define SHAPE_BYTES 2048 /* of a pattern with each ? written out */

static const char *const defaults[] = {
    [OFILE_EDITOR] = ".*.sw? .*.swpx *~ #*# .#* .goutputstream-* .~lock.*# .nfs* .fuse_hidden*",
    [OFILE_TEMPORARY] = "sed?????? tmp???????? .*.?????? *.?????? ????????"};
static char *lists[2]; /* NULL: the default */

const char *overlay_names(enum ofile_class class)
{
    return lists[class] ? lists[class] : defaults[class];
}

int overlay_names_set(enum ofile_class class, const char *patterns)
{
    char *copy;

    if (strlen(patterns) > OVERLAY_NAMES_BYTES)
        return E2BIG;
    copy = strdup(patterns);
    if (copy == NULL)
        return ENOMEM;
    free(lists[class]);
    lists[class] = copy;
    return 0;
}

static bool is_lower_word(const char *s)
{
    while (islower((unsigned char)*s))
        s++;
    return *s == 0;
}

/* Before the ?s at the end there is no text of its own that would tell a temporary name from another. */
static bool is_bare(const char *pattern, size_t before)
{
    for (size_t i = 0; i < before; i++)
        if (pattern[i] != '*' && (pattern[i] != '.' || i == 0))
            return false;
    return true;
}

static bool has_shape(const char *name, const char *pattern)
{
    static const char one[] = "[A-Za-z0-9_]";
    char shape[SHAPE_BYTES], *p = shape;
    size_t len = strlen(pattern), tail = 0, name_len = strlen(name);

    while (tail < len && pattern[len - 1 - tail] == '?')
        tail++;
    for (size_t i = 0; i < len; i++) {
        if ((size_t)(p - shape) + sizeof one > sizeof shape)
            return false; /* longer than any mkstemp's: matches nothing */
        if (pattern[i] == '?') {
            memcpy(p, one, sizeof one - 1);
            p += sizeof one - 1;
        } else {
            if (pattern[i] == '*')
                *p++ = '?';
            *p++ = pattern[i];
        }
    }
    *p = 0;
    if (fnmatch(shape, name, FNM_PERIOD) != 0)
        return false;
    return tail == 0 || tail > name_len || !is_bare(pattern, len - tail) ||
           !is_lower_word(name + name_len - tail);
}

/* Is the name one of the list? */
static bool matches(const char *name, enum ofile_class class)
{
    const char *at = overlay_names(class);
    char pattern[OVERLAY_NAMES_BYTES + 1];

    for (size_t len; *(at += strspn(at, " \t")); at += len) {
        len = strcspn(at, " \t");
        memcpy(pattern, at, len);
        pattern[len] = 0;
        if (class == OFILE_EDITOR ? fnmatch(pattern, name, 0) == 0 : has_shape(name, pattern))
            return true;
    }
    return false;
}

bool overlay_is_editors(const char *name)
{
    return matches(name, OFILE_EDITOR);
}

bool overlay_is_temporary_shape(const char *name)
{
    return matches(name, OFILE_TEMPORARY);
}
