// mappings MIB SECONDS: fills MIB of memory, then makes mappings until the kernel refuses one more (vm.max_map_count), and
// reads all of it again and again, in a child, too. Status 1 at the first wrong page.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8 };

static uint64_t word(size_t page, size_t i) {
    uint64_t x = (page * 8 + i % 8 + 1) * 0x9e3779b97f4a7c15u;
    return x ^ x >> 29;
}

static void check(const char *who, char *at, size_t pages) {
    for (size_t i = 0; i < pages; i++)
        for (size_t w = 0; w < WORDS; w++)
            if (((volatile uint64_t *)(at + i * PAGE))[w] != word(i, w)) {
                fprintf(stderr, "mappings: WRONG in the %s: page %zu word %zu\n", who, i, w);
                _exit(1);
            }
}

int main(int argc, char **argv) {
    size_t pages = (argc > 1 ? strtoul(argv[1], NULL, 10) : 64) * 256;
    time_t end = time(NULL) + (argc > 2 ? atoi(argv[2]) : 3);
    char *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return 2;
    for (size_t i = 0; i < pages; i++)
        for (size_t w = 0; w < WORDS; w++) ((uint64_t *)(at + i * PAGE))[w] = word(i, w);
    // Neighbours differ, so they stay apart.
    long made = 0;
    while (mmap(NULL, PAGE, made % 2 ? PROT_READ : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED)
        if (++made > 10000000) return 3;
    do {
        check("parent", at, pages);
        pid_t pid = fork();
        if (pid == 0) {
            check("child", at, pages);
            _exit(0);
        }
        int status;
        if (pid > 0 && (waitpid(pid, &status, 0) != pid || status != 0)) {
            fprintf(stderr, "mappings: a child ended with %#x\n", status);
            return 1;
        }
    } while (time(NULL) < end);
    puts(made > 1000 ? "right" : "few mappings");
    return 0;
}
