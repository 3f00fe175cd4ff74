/* SPDX-License-Identifier: Apache-2.0 */
/* base_guard.c - whether a fatal signal struck inside LMDB.
 *
 * LMDB believes what its pages say: a damaged one makes it read where nothing is (SIGSEGV, SIGBUS behind the file's
 * end), divide or run astray, or fail an assertion of its own (SIGABRT). No call into it is bracketed for this: that
 * would be paid by every read. Instead the signal handler looks at where the thread was. SIGBUS: on a page that the
 * file does not have, and nothing else that this process maps is ever cut or written. The others: the program counter,
 * or a word on the stack from its pointer upwards, lies in LMDB's code; the word is the return address of a call that
 * LMDB made, to memcpy or abort, say. A stale word that happens to look like one costs a scrub, no more. (The stack is
 * read by a system call, which fails where a load would crash anew.)
 *
 * When it cannot be told (another processor, a static LMDB, the system call forbidden), the answer is yes: to scrub a
 * sound store costs seconds, to trust a damaged one costs the data.
 *
 * Owner: base_guard_init the main thread, base_guard_struck the handler on any thread; what it calls is
 * async-signal-safe.
 */
#include <dlfcn.h>
#include <link.h>
#include <signal.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>
#include "base_db.h"

enum { STACK_PIECE_BYTES = 1024, STACK_PIECES = 16 };

static struct {
    uintptr_t from, to; /* LMDB's code; 0, 0: not known */
} text;

/* The segment that holds mdb_env_open, if it is LMDB's own. */
static int find_text(struct dl_phdr_info *info, size_t size, void *ctx)
{
    uintptr_t at = (uintptr_t)ctx;

    (void)size;
    if (info->dlpi_name == NULL || *info->dlpi_name == '\0')
        return 0; /* the program itself: all of our code lies with it */
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        uintptr_t from = info->dlpi_addr + p->p_vaddr;

        if (p->p_type == PT_LOAD && (p->p_flags & PF_X) && at >= from && at - from < p->p_memsz) {
            text.from = from;
            text.to = from + p->p_memsz;
            return 1;
        }
    }
    return 0;
}

void base_guard_init(void)
{
    void *at = dlsym(RTLD_DEFAULT, "mdb_env_open");

    if (at)
        (void)dl_iterate_phdr(find_text, at); /* 0: text stays unknown */
}

static bool in_text(uintptr_t p)
{
    return p >= text.from && p < text.to;
}

/* The program counter and the stack pointer; false: not of this processor. */
static bool registers(const ucontext_t *uc, uintptr_t *ret_pc, uintptr_t *ret_sp)
{
#if defined(__x86_64__)
    *ret_pc = (uintptr_t)uc->uc_mcontext.gregs[REG_RIP];
    *ret_sp = (uintptr_t)uc->uc_mcontext.gregs[REG_RSP];
    return true;
#elif defined(__aarch64__)
    *ret_pc = (uintptr_t)uc->uc_mcontext.pc;
    *ret_sp = (uintptr_t)uc->uc_mcontext.sp;
    return true;
#else
    (void)uc, (void)ret_pc, (void)ret_sp;
    return false;
#endif
}

bool base_guard_struck(int sig, const void *ucontext)
{
    uintptr_t words[STACK_PIECE_BYTES / sizeof(uintptr_t)], pc, sp;

    if (sig == SIGBUS || text.to == 0 || !registers(ucontext, &pc, &sp) || in_text(pc))
        return true;
    sp &= ~(uintptr_t)(sizeof sp - 1);
    for (size_t piece = 0; piece < STACK_PIECES; piece++) {
        struct iovec to = {words, sizeof words}, from = {(void *)(sp + piece * sizeof words), sizeof words};
        ssize_t n = process_vm_readv(getpid(), &to, 1, &from, 1, 0);

        if (n <= 0)
            return piece == 0; /* the stack's end, or nothing can be read */
        for (size_t i = 0; i < (size_t)n / sizeof *words; i++)
            if (in_text(words[i]))
                return true;
    }
    return false;
}
