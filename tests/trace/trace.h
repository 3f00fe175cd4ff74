/* SPDX-License-Identifier: Apache-2.0 */
/* trace.h - a test as text: a command, "----", what came of it.
 *
 *     # a comment stays
 *     propose 1 2
 *     ----
 *     1->2 append ...
 *     <empty line>
 *
 * A line that begins with a blank goes on with the command above it. trace_run calls fn for each command line and
 * compares what it printed with what the file says; UPDATE=1 in the environment rewrites the file instead: then read
 * the diff. No output is no
 * line between "----" and the empty line. */
#pragma once
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TRACE_WORDS_MAX = 128 };

/* Splits a line at blanks, in place; returns the number of words. */
static inline int trace_words(char *line, char **words, int max)
{
    int n = 0;

    for (char *save, *w = strtok_r(line, " \t\n", &save); w && n < max; w = strtok_r(NULL, " \t\n", &save))
        words[n++] = w;
    return n;
}

/* Copies up to the empty line (or the end) that ends an answer into want. */
static inline void trace_answer(FILE *in, FILE *want)
{
    char line[1024];

    while (fgets(line, sizeof line, in) && line[0] != '\n')
        fputs(line, want);
}

static const char *trace_want; /* what the file says of the command being run */

/* Returns the number of commands whose answer differs; they are printed. -1: the file cannot be read or written.
 * ran, if not NULL, gets the number of commands. */
static inline int trace_run(const char *path, void (*fn)(void *ctx, FILE *out, int n, char **words), void *ctx,
                            int *ran)
{
    FILE *in = fopen(path, "r"), *next;
    char line[1024], command[1024] = "", *text = NULL, *words[TRACE_WORDS_MAX];
    size_t text_len;
    int bad = 0, number = 0, at = 0, count = 0;

    if (in == NULL)
        return -1;
    next = open_memstream(&text, &text_len);
    while (fgets(line, sizeof line, in)) {
        char *have = NULL, *want = NULL;
        size_t have_len, want_len;
        FILE *f;

        number++;
        fputs(line, next);
        if (strncmp(line, "----", 4) != 0) {
            if (line[0] == ' ') {
                if (strlen(command) + strlen(line) < sizeof command)
                    strcat(command, line);
            } else if (line[0] != '\n' && line[0] != '#') {
                memcpy(command, line, sizeof command);
                at = number;
            }
            continue;
        }
        f = open_memstream(&want, &want_len);
        trace_answer(in, f);
        fclose(f);
        memcpy(line, command, sizeof line);
        f = open_memstream(&have, &have_len);
        trace_want = want;
        fn(ctx, f, trace_words(line, words, TRACE_WORDS_MAX), words);
        fclose(f);
        count++;
        fprintf(next, "%s\n", have);
        if (strcmp(have, want) != 0 && getenv("UPDATE") == NULL) {
            printf("# %s:%d: %s# --- the file says\n%s# +++ now\n%s", path, at, command, want, have);
            bad++;
        }
        for (const char *p = want; *p; p++)
            number += *p == '\n';
        number++;
        trace_want = NULL;
        free(have);
        free(want);
    }
    fclose(in);
    fclose(next);
    if (getenv("UPDATE")) {
        FILE *out = fopen(path, "w");

        if (out == NULL || fputs(text, out) < 0 || fclose(out) != 0)
            bad = -1;
    }
    free(text);
    if (ran)
        *ran = count;
    return bad;
}

static const char *trace_prefix;

static inline int trace_is(const struct dirent *e)
{
    size_t len = strlen(e->d_name);

    return strncmp(e->d_name, trace_prefix, strlen(trace_prefix)) == 0 && len > 6 &&
           strcmp(e->d_name + len - 6, ".trace") == 0;
}

/* The files tests/trace/PREFIX*.trace in order; to be freed. How many, or -1. */
static inline int trace_paths(const char *prefix, char ***ret_paths)
{
    struct dirent **names;
    int n;

    trace_prefix = prefix;
    n = scandir("tests/trace/", &names, trace_is, alphasort);
    if (n < 0)
        return -1;
    *ret_paths = malloc((size_t)(n + 1) * sizeof **ret_paths);
    for (int i = 0; i < n; i++) {
        if (asprintf(&(*ret_paths)[i], "tests/trace/%s", names[i]->d_name) < 0)
            abort();
        free(names[i]);
    }
    free(names);
    return n;
}

static inline void trace_paths_free(char **paths, int n)
{
    for (int i = 0; i < n; i++)
        free(paths[i]);
    free(paths);
}
