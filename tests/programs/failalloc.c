// Preloaded into vswap: allocations of the pager fail, as FAIL_ALLOC says; the processes of the tree, which get it too, allocate as
// ever.
//
//   FAIL_ALLOC=N       the one with this number
//   FAIL_ALLOC=@SITE   the first one that is made by this way through the program (a number that stands for the calls that lead there)
//   … with a "+" behind it: and every one from there on, or every one made that way
//   FAIL_ALLOC=?       none: each SITE is written to the file in FAIL_ALLOC_LOG, once
//
// When one fails for the first time, FAIL_ALLOC_LOG gets a line that says so.
#define _GNU_SOURCE
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <link.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

enum { FRAMES = 24, SITES = 1 << 14 };

static long at, on;
static uint64_t site;
static int lists, by_site;
static const char *log_name;
static pid_t seen;
static int pager;
static atomic_long count, failed;
static uintptr_t program_from, program_to;
static _Atomic uint64_t known[SITES];
static _Thread_local int inside __attribute__((tls_model("initial-exec")));

static int find_program(struct dl_phdr_info *info, size_t size, void *data) {
    (void)size, (void)data;
    program_from = info->dlpi_addr;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD)
            program_to = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz;
    return 1; // the first one is the program
}

__attribute__((constructor)) static void begin(void) {
    char file[256] = "";
    const char *number = getenv("FAIL_ALLOC");
    if (!number || readlink("/proc/self/exe", file, sizeof file - 1) < 0 || !strstr(file, "vswap")) return;
    log_name = getenv("FAIL_ALLOC_LOG");
    lists = *number == '?';
    by_site = *number == '@';
    if (by_site)
        site = strtoull(number + 1, NULL, 16);
    else
        at = strtol(number, NULL, 10);
    on = strchr(number, '+') != NULL;
    dl_iterate_phdr(find_program, NULL);
    void *frames[2];
    backtrace(frames, 2); // loads what it needs now
}

// The pager is forked, and says so by its name only once it is ready.
static int is_pager(void) {
    if (seen != getpid()) {
        seen = getpid();
        pager = 0;
    }
    if (!pager) {
        char name[32] = "";
        int file = open("/proc/self/comm", O_RDONLY | O_CLOEXEC);
        if (file >= 0 && read(file, name, sizeof name - 1) > 0) pager = !strcmp(name, "vswap-pager\n");
        if (file >= 0) close(file);
    }
    return pager;
}

static void tell(const char *line, size_t length) {
    int file = log_name ? open(log_name, O_WRONLY | O_APPEND | O_CLOEXEC) : -1;
    if (file < 0) return;
    if (write(file, line, length) < 0) abort();
    close(file);
}

// The way through the program to here, wherever it is loaded.
static uint64_t way(void) {
    void *frames[FRAMES];
    uint64_t hash = 0xcbf29ce484222325;
    int depth = backtrace(frames, FRAMES);
    for (int i = 0; i < depth; i++) {
        uintptr_t address = (uintptr_t)frames[i];
        if (address >= program_from && address < program_to) hash = (hash ^ (address - program_from)) * 0x100000001b3;
    }
    return hash;
}

static void list(uint64_t found) {
    for (size_t i = found % SITES, tries = 0; tries < SITES; i = (i + 1) % SITES, tries++) {
        uint64_t empty = 0;
        if (atomic_compare_exchange_strong(&known[i], &empty, found)) {
            char line[32];
            tell(line, (size_t)snprintf(line, sizeof line, "%016llx\n", (unsigned long long)found));
            return;
        }
        if (empty == found) return;
    }
}

static int fails(void) {
    if ((!at && !by_site && !lists) || inside || !is_pager()) return 0;
    int old_errno = errno;
    inside = 1;
    int now;
    if (lists || by_site) {
        uint64_t found = way();
        if (lists) list(found);
        now = by_site && found == site && (on || !failed);
    } else {
        long number = atomic_fetch_add(&count, 1) + 1;
        now = number == at || (on && number > at);
    }
    if (now && !atomic_exchange(&failed, 1)) tell("failed\n", 7);
    inside = 0;
    errno = now ? ENOMEM : old_errno;
    return now;
}

void *malloc(size_t size) { return fails() ? NULL : __libc_malloc(size); }
void *calloc(size_t n, size_t size) { return fails() ? NULL : __libc_calloc(n, size); }
void *realloc(void *old, size_t size) { return fails() ? NULL : __libc_realloc(old, size); }
void *aligned_alloc(size_t to, size_t size) { return fails() ? NULL : __libc_memalign(to, size); }

int posix_memalign(void **out, size_t to, size_t size) {
    void *got = fails() ? NULL : __libc_memalign(to, size);
    if (!got) return ENOMEM;
    *out = got;
    return 0;
}
