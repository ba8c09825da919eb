// Preloaded into vswap: the allocation of the pager with the number in FAIL_ALLOC fails; with a "+" behind it, every one from
// there on. The processes of the tree, which get it too, allocate as ever.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static long at, on;
static pid_t seen;
static int pager;
static atomic_long count;

__attribute__((constructor)) static void begin(void) {
    char file[256] = "";
    const char *number = getenv("FAIL_ALLOC");
    if (!number || readlink("/proc/self/exe", file, sizeof file - 1) < 0 || !strstr(file, "vswap")) return;
    at = strtol(number, NULL, 10);
    on = strchr(number, '+') != NULL;
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

static int fails(void) {
    if (!at || !is_pager()) return 0;
    long number = atomic_fetch_add(&count, 1) + 1;
    if (number != at && !(on && number > at)) return 0;
    errno = ENOMEM;
    return 1;
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
