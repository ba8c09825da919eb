// counters: threads add to a counter on every page of a set larger than memory; the totals must be exact.
//
//   counters [-t THREADS] [-m MIB] [-r ROUNDS]
//
// Every round all threads are created anew, visit every page in an order of their own, and are joined, so
// that threads also end while what the kernel clears at their end may be evicted. A lost write, or a page that
// came back older than it left, is a wrong total. Prints one line that depends on the arguments alone.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { WORDS = 512, COUNTER = 5, MAX_THREADS = 64 };
static _Atomic uint64_t *memory;
static uint64_t pages;

static uint64_t mix(uint64_t x) {
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdu;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53u;
    return x ^ (x >> 33);
}

// Pages beside the counter: text-like, random and nearly empty ones.
static uint64_t filler(uint64_t page, unsigned word) {
    switch (page % 3) {
    case 0: return word % 8 ? 0x2065687420666f20u + word % 5 : mix(page);
    case 1: return mix(page * WORDS + word);
    default: return 0;
    }
}

static void *round_of(void *arg) {
    uint64_t id = (uintptr_t)arg, at = mix(id) % pages, step = (mix(id + 77) % pages) | 1;
    for (uint64_t a = step, b = pages, rest; b; rest = a % b, a = b, b = rest)
        if (b == 1) goto coprime; // every page is visited exactly once
    step = 1;
coprime:
    for (uint64_t n = 0; n < pages; n++, at = (at + step) % pages)
        atomic_fetch_add_explicit(&memory[at * WORDS + COUNTER], 1, memory_order_relaxed);
    return NULL;
}

static int fail(const char *what) {
    fprintf(stderr, "counters: %s: %s\n", what, strerror(errno));
    return 2;
}

int main(int argc, char **argv) {
    uint64_t thread_count = 4, mib = 256, rounds = 3;
    for (int c; (c = getopt(argc, argv, "t:m:r:")) != -1;) switch (c) {
        case 't': thread_count = strtoull(optarg, NULL, 10); break;
        case 'm': mib = strtoull(optarg, NULL, 10); break;
        case 'r': rounds = strtoull(optarg, NULL, 10); break;
        default: fprintf(stderr, "usage: counters [-t threads] [-m MiB] [-r rounds]\n"); return 2;
        }
    if (!thread_count || thread_count > MAX_THREADS || !mib) return fprintf(stderr, "counters: -t 1 to %d, -m from 1\n", MAX_THREADS), 2;
    pages = mib * 256;
    memory = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return fail("mmap");
    for (uint64_t p = 0; p < pages; p++)
        for (unsigned w = 0; w < WORDS; w++)
            if (w != COUNTER && filler(p, w)) atomic_store_explicit(&memory[p * WORDS + w], filler(p, w), memory_order_relaxed);
    for (uint64_t r = 0; r < rounds; r++) {
        pthread_t thread[MAX_THREADS];
        for (uint64_t i = 0; i < thread_count; i++)
            if ((errno = pthread_create(&thread[i], NULL, round_of, (void *)(uintptr_t)(r * MAX_THREADS + i)))) return fail("pthread_create");
        for (uint64_t i = 0; i < thread_count; i++)
            if ((errno = pthread_join(thread[i], NULL))) return fail("pthread_join");
    }
    uint64_t total = 0;
    for (uint64_t p = 0; p < pages; p++)
        for (unsigned w = 0; w < WORDS; w++) {
            uint64_t got = memory[p * WORDS + w], expected = w == COUNTER ? thread_count * rounds : filler(p, w);
            if (w == COUNTER) total += got;
            if (got == expected) continue;
            fprintf(stderr, "counters: WRONG page %lu word %u address %p: expected %#lx got %#lx\n", (unsigned long)p, w,
                    (void *)&memory[p * WORDS + w], (unsigned long)expected, (unsigned long)got);
            return 1;
        }
    printf("counters: %lu pages, total %lu, ok\n", (unsigned long)pages, (unsigned long)total);
    return 0;
}
