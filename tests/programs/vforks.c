// vforks ROUNDS: children between vfork and exec move and grow memory of their parent's, most of which was evicted, while
// another thread moves its own. Every page is checked. Prints the milliseconds it took; status 1 at the first wrong page.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, PAGES = 4096 };

static volatile int over;

static uint64_t word(size_t page, size_t i) {
    uint64_t x = (page * 8 + i % 8 + 1) * 0x9e3779b97f4a7c15u;
    return x ^ x >> 29;
}

static void check(const char *what, char *at, size_t pages, size_t filled) {
    for (size_t i = 0; i < pages; i++)
        for (size_t w = 0; w < WORDS; w++) {
            uint64_t got = ((volatile uint64_t *)(at + i * PAGE))[w], right = i < filled ? word(i, w) : 0;
            if (got == right) continue;
            fprintf(stderr, "vforks: WRONG %s: page %zu word %zu: expected %#lx got %#lx\n", what, i, w,
                    (unsigned long)right, (unsigned long)got);
            _exit(1);
        }
}

static void must(int holds, const char *what) {
    if (holds) return;
    perror(what);
    _exit(2);
}

static char *fill(size_t pages) {
    char *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(at != MAP_FAILED, "mmap");
    for (size_t i = 0; i < pages; i++)
        for (size_t w = 0; w < WORDS; w++) ((uint64_t *)(at + i * PAGE))[w] = word(i, w);
    return at;
}

static void *mover(void *unused) {
    char *at = fill(PAGES / 4);
    while (!over) {
        at = mremap(at, PAGES / 4 * PAGE, PAGES / 2 * PAGE, MREMAP_MAYMOVE);
        must(at != MAP_FAILED, "mremap of a thread");
        check("moved by a thread", at, PAGES / 2, PAGES / 4);
        at = mremap(at, PAGES / 2 * PAGE, PAGES / 4 * PAGE, 0);
        must(at != MAP_FAILED, "mremap of a thread");
    }
    return unused;
}

static char *volatile moved;

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 20;
    static char *volatile at;
    at = fill(PAGES);
    pthread_t thread;
    must(!pthread_create(&thread, NULL, mover, NULL), "pthread_create");
    struct timespec begin, end;
    long ms = 0;
    for (int round = 0; round < rounds; round++) {
        clock_gettime(CLOCK_MONOTONIC, &begin);
        pid_t pid = vfork();
        must(pid >= 0, "vfork");
        if (pid == 0) {
            // To a place of its own, larger and then as it was.
            moved = mremap(at, PAGES * PAGE, (PAGES + 64) * PAGE, MREMAP_MAYMOVE);
            _exit(moved == MAP_FAILED);
        }
        clock_gettime(CLOCK_MONOTONIC, &end);
        ms += (end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000;
        int status;
        must(waitpid(pid, &status, 0) == pid && status == 0, "mremap of a vfork child");
        at = moved;
        check("moved by a vfork child", at, PAGES + 64, PAGES);
        at = mremap(at, (PAGES + 64) * PAGE, PAGES * PAGE, 0);
        must(at != MAP_FAILED, "mremap");
    }
    over = 1;
    pthread_join(thread, NULL);
    printf("%ld\n", ms);
    return 0;
}
