// A storm of mapping changes beside pages that come back: STORMERS threads do nothing but MADV_DONTNEED on pages of
// their own that they have just written, while the main thread walks MIB of patterned memory, verifies every page and
// measures its longest wait. Exit status 1 at the first wrong byte.
//
// usage: storm MIB SECONDS STORMERS
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { PAGE = 4096, OWN = 64 };

static atomic_bool stop;
static atomic_ulong changes;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static char *map(size_t bytes) {
    char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) {
        perror("mmap");
        exit(2);
    }
    return at;
}

static uint64_t word(uint64_t page, uint64_t index) {
    uint64_t x = (page << 16 ^ index / 2) * 0x9e3779b97f4a7c15;
    return index % 2 ? x ^ x >> 29 : page;
}

static void *storm(void *arg) {
    (void)arg;
    char *own = map(OWN * PAGE);
    for (unsigned turn = 0; !stop; turn++) {
        char *page = own + turn % OWN * PAGE;
        if (page[7] != 0) {
            puts("a page that was given up is not zero");
            exit(1);
        }
        page[7] = 1;
        madvise(page, PAGE, MADV_DONTNEED);
        changes++;
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fputs("usage: storm MIB SECONDS STORMERS\n", stderr);
        return 2;
    }
    size_t pages = (size_t)atoi(argv[1]) << 8;
    double seconds = atof(argv[2]);
    int stormers = atoi(argv[3]);
    char *memory = map(pages * PAGE);
    for (size_t page = 0; page < pages; page++)
        for (size_t i = 0; i < PAGE / 8; i++)
            ((uint64_t *)(memory + page * PAGE))[i] = word(page, i);

    pthread_t *threads = calloc(stormers, sizeof *threads);
    for (int i = 0; i < stormers; i++)
        if (pthread_create(&threads[i], NULL, storm, NULL))
            return 2;
    double longest = 0, begin = now();
    unsigned long walks = 0, verified = 0;
    while (now() - begin < seconds || walks == 0) {
        for (size_t page = 0; page < pages; page++) {
            volatile uint64_t *words = (uint64_t *)(memory + page * PAGE);
            double before = now();
            (void)words[0];
            double waited = now() - before;
            if (waited > longest)
                longest = waited;
            for (size_t i = 0; i < PAGE / 8; i++)
                if (words[i] != word(page, i)) {
                    printf("page %zu word %zu is wrong\n", page, i);
                    return 1;
                }
            verified++;
        }
        walks++;
    }
    stop = 1;
    for (int i = 0; i < stormers; i++)
        pthread_join(threads[i], NULL);
    printf("%lu changes, %lu pages verified, longest wait %.1f ms\n", changes, verified, longest * 1e3);
    return 0;
}
