// A crowd: PROCESSES children are alive at once, each with PAGES pages of its own beside PAGES that it has from its
// parent; when all are there each verifies everything, rewrites its own, rests and verifies again,
// ROUNDS times: asleep, it is what a pager evicts first.
//
// usage: crowd PROCESSES PAGES
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, ROUNDS = 4 };

// What everybody shares: a count of who is there, and of what was verified.
struct board {
    long there, verified, wrong, failed;
};
static struct board *board;

static uint64_t *map(long pages, int flags) {
    void *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) {
        perror("mmap");
        _exit(2);
    }
    return at;
}

static uint64_t word(uint64_t who, uint64_t page, uint64_t index) {
    uint64_t x = (who << 40 ^ page << 12 ^ index / 2) * 0x9e3779b97f4a7c15;
    return index % 2 ? x ^ x >> 31 : who + page;
}

static void fill(uint64_t *at, long pages, uint64_t who) {
    for (long page = 0; page < pages; page++)
        for (long i = 0; i < WORDS; i++)
            at[page * WORDS + i] = word(who, page, i);
}

static void verify(const uint64_t *at, long pages, uint64_t who) {
    for (long page = 0; page < pages; page++) {
        for (long i = 0; i < WORDS; i++)
            if (at[page * WORDS + i] != word(who, page, i)) {
                fprintf(stderr, "WRONG: process %ld page %ld word %ld\n", (long)who, page, i);
                __atomic_add_fetch(&board->wrong, 1, __ATOMIC_SEQ_CST);
                _exit(1);
            }
        __atomic_add_fetch(&board->verified, 1, __ATOMIC_SEQ_CST);
    }
}

static void live(const uint64_t *inherited, long pages, long all) {
    uint64_t me = getpid();
    uint64_t *own = map(pages, MAP_PRIVATE);
    fill(own, pages, me);
    __atomic_add_fetch(&board->there, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&board->there, __ATOMIC_SEQ_CST) + __atomic_load_n(&board->failed, __ATOMIC_SEQ_CST) < all)
        usleep(20000);
    for (int round = 0; round < ROUNDS; round++) {
        verify(inherited, pages, 0);
        verify(own, pages, me + round);
        fill(own, pages, me + round + 1);
        usleep(100000);
    }
    verify(own, pages, me + ROUNDS);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fputs("usage: crowd PROCESSES PAGES\n", stderr);
        return 2;
    }
    long all = atol(argv[1]), pages = atol(argv[2]);
    board = (struct board *)map(1, MAP_SHARED);
    uint64_t *inherited = map(pages, MAP_PRIVATE);
    fill(inherited, pages, 0);
    for (long i = 0; i < all; i++) {
        pid_t child = fork();
        if (child == 0) {
            live(inherited, pages, all);
            _exit(0);
        }
        if (child < 0)
            __atomic_add_fetch(&board->failed, 1, __ATOMIC_SEQ_CST);
    }
    int status, bad = 0;
    while (wait(&status) > 0)
        bad += status != 0;
    printf("%ld of %ld processes, %ld pages verified, %ld wrong, %d ended badly\n", board->there, all, board->verified,
           board->wrong, bad);
    return board->wrong || bad ? 1 : 0;
}
