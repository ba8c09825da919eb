// rawclone MIB: forks by the bare system call, so that no hook runs and nobody enters the child, which then changes
// its mappings: it grows one over the hole that MADV_DONTFORK left, makes guard pages and takes them away, and grows
// and moves. Every page is checked. Status 0, or 1 at the first wrong one.
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, ROUNDS = 4, GUARD_INSTALL = 102, GUARD_REMOVE = 103 };

static uint64_t word(size_t page, size_t i) {
    uint64_t x = (page * WORDS + i + 1) * 0x9e3779b97f4a7c15u;
    return (x ^ x >> 29) * 0xbf58476d1ce4e5b9u;
}

// Page `i` from `at` on must hold what page `from + i` was filled with; or zeros.
static void check(const char *what, char *at, size_t pages, size_t from, int zero) {
    for (size_t i = 0; i < pages; i++)
        for (size_t w = 0; w < WORDS; w++) {
            uint64_t got = ((volatile uint64_t *)(at + i * PAGE))[w], right = zero ? 0 : word(from + i, w);
            if (got == right) continue;
            fprintf(stderr, "rawclone: WRONG %s: page %zu word %zu: expected %#lx got %#lx\n", what, i, w,
                    (unsigned long)right, (unsigned long)got);
            _exit(1);
        }
}

static void must(int holds, const char *what) {
    if (holds) return;
    perror(what);
    _exit(2);
}

static void child(char *base, size_t pages) {
    char *last = base + (pages - 1) * PAGE;
    must(mremap(last, PAGE, 500 * PAGE, 0) == last, "growth in place");
    check("grown over a hole", last + PAGE, 499, 0, 1);
    check("before it", last, 1, pages - 1, 0);
    must(!madvise(base + 100 * PAGE, 300 * PAGE, GUARD_INSTALL), "MADV_GUARD_INSTALL");
    must(!madvise(base + 100 * PAGE, 300 * PAGE, GUARD_REMOVE), "MADV_GUARD_REMOVE");
    check("below guard pages", base + 100 * PAGE, 300, 0, 1);
    check("beside guard pages", base, 100, 0, 0);
    char *moved = mremap(base + 1000 * PAGE, 500 * PAGE, 900 * PAGE, MREMAP_MAYMOVE);
    must(moved != MAP_FAILED, "growth with a move");
    check("moved", moved, 500, 1000, 0);
    check("grown by a move", moved + 500 * PAGE, 400, 0, 1);
    check("the rest", base + 1500 * PAGE, pages - 1500, 1500, 0);
    _exit(0);
}

int main(int argc, char **argv) {
    size_t pages = (argc > 1 ? strtoul(argv[1], NULL, 10) : 64) * 256, half = pages / 2;
    char *base = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(base != MAP_FAILED, "mmap");
    for (size_t i = 0; i < pages; i++)
        for (size_t w = 0; w < WORDS; w++) ((uint64_t *)(base + i * PAGE))[w] = word(i, w);
    must(!madvise(base + half * PAGE, half * PAGE, MADV_DONTFORK), "MADV_DONTFORK");
    for (int round = 0; round < ROUNDS; round++) {
        long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
        must(pid >= 0, "clone");
        if (pid == 0) child(base, half);
        int status;
        must(waitpid((pid_t)pid, &status, 0) == pid, "waitpid");
        if (status) {
            fprintf(stderr, "rawclone: round %d: status %#x\n", round, status);
            return 1;
        }
        check("in the parent", base, pages, 0, 0);
    }
    puts("rawclone: ok");
    return 0;
}
