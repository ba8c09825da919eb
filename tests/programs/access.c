// Page access generator: fills MIB of memory with CONTENT, then touches pages in PATTERN, reading every page whole and
// checking that it is the one that was written. Prints a sum that depends on the arguments alone, and on standard error
// a line of JSON: seconds of both parts, and how long touches took.
//
// usage: access PATTERN MODE THREADS MIB PASSES CONTENT
//   PATTERN  seq | stride | random | zipf | phase | chase
//   MODE     ro | rw (every touch changes its page)
//   PASSES   touches, in multiples of the number of pages
//   CONTENT  a number N: random bytes that compress N:1 (1: not at all); or a file of pages, taken in turn
//
// Threads own disjoint parts of the memory. zipf: exponent 0.99, the ranks scattered over the part (Gray et al., Quickly
// Generating Billion-Record Synthetic Databases, SIGMOD 1994). phase: uniform in a quarter of the part, which moves on six
// times. chase: each page names the next one, along one random cycle.
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, STRIDE = 16, PHASES = 6, BUCKETS = 256 };
// The first words of a page.
enum { NUMBER, NEXT, VERSION, STAMPS };

static const double EXPONENT = 0.99;

struct part {
    uint64_t *first;
    uint64_t pages, number;
    uint32_t *versions;
    uint64_t sum, state;
    // Touches by duration: eight buckets for each power of two nanoseconds.
    uint64_t histogram[BUCKETS];
};

static const char *pattern;
static int writes, ratio;
static double passes;
static const unsigned char *file;
static uint64_t file_pages;
static pthread_barrier_t filled;

static void die(const char *what) {
    perror(what);
    exit(2);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

// splitmix64
static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

static uint64_t next(struct part *p) { return mix(p->state++); }

static double fraction(struct part *p) { return (next(p) >> 11) * 0x1p-53; }

static void fill_page(uint64_t *page, uint64_t number) {
    if (file) {
        memcpy(page, file + number % file_pages * PAGE, PAGE);
    } else {
        uint64_t own = WORDS / ratio;
        for (uint64_t i = 0; i < WORDS; i++)
            page[i] = mix(number * WORDS + i % own);
    }
    page[NUMBER] = number;
    page[VERSION] = 0;
}

// One cycle through all pages (Sattolo).
static void link_pages(struct part *p) {
    uint32_t *order = malloc(p->pages * sizeof *order);
    if (!order)
        die("malloc");
    for (uint64_t i = 0; i < p->pages; i++)
        order[i] = i;
    for (uint64_t i = p->pages - 1; i > 0; i--) {
        uint64_t j = next(p) % i;
        uint32_t other = order[i];
        order[i] = order[j];
        order[j] = other;
    }
    for (uint64_t i = 0; i < p->pages; i++)
        p->first[i * WORDS + NEXT] = order[i];
    free(order);
}

static uint64_t touch(struct part *p, uint64_t index) {
    struct timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    volatile uint64_t *page = p->first + index * WORDS;
    if (page[NUMBER] != p->number + index || page[VERSION] != p->versions[index]) {
        fprintf(stderr, "WRONG: page %lu holds page %lu, version %lu, not %u\n", p->number + index, page[NUMBER],
                page[VERSION], p->versions[index]);
        _exit(1);
    }
    clock_gettime(CLOCK_MONOTONIC, &to);
    for (int i = STAMPS; i < WORDS; i++)
        p->sum += page[i];
    if (writes)
        page[VERSION] = ++p->versions[index];
    uint64_t ns = (to.tv_sec - from.tv_sec) * 1000000000 + to.tv_nsec - from.tv_nsec + 8;
    int power = 63 - __builtin_clzl(ns);
    unsigned bucket = (power - 3) * 8 + (ns >> (power - 3) & 7);
    p->histogram[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
    return page[NEXT];
}

static void zipf(struct part *p, uint64_t touches) {
    double zeta = 0;
    for (uint64_t i = 1; i <= p->pages; i++)
        zeta += pow(i, -EXPONENT);
    double two = 1 + pow(2, -EXPONENT), alpha = 1 / (1 - EXPONENT);
    double eta = (1 - pow(2.0 / p->pages, 1 - EXPONENT)) / (1 - two / zeta);
    for (uint64_t i = 0; i < touches; i++) {
        double u = fraction(p), uz = u * zeta;
        uint64_t rank = uz < 1 ? 0 : uz < two ? 1 : p->pages * pow(eta * u - eta + 1, alpha);
        touch(p, mix(rank) % p->pages);
    }
}

static void visit(struct part *p) {
    uint64_t n = p->pages, touches = n * passes;
    if (!strcmp(pattern, "seq")) {
        for (uint64_t i = 0; i < touches; i++)
            touch(p, i % n);
    } else if (!strcmp(pattern, "stride")) {
        uint64_t rows = n / STRIDE;
        for (uint64_t i = 0; i < touches; i++)
            touch(p, i % rows * STRIDE + i / rows % STRIDE);
    } else if (!strcmp(pattern, "random")) {
        for (uint64_t i = 0; i < touches; i++)
            touch(p, next(p) % n);
    } else if (!strcmp(pattern, "phase")) {
        for (uint64_t i = 0; i < touches; i++)
            touch(p, (i * PHASES / touches * n / PHASES + next(p) % (n / 4)) % n);
    } else if (!strcmp(pattern, "zipf")) {
        zipf(p, touches);
    } else {
        for (uint64_t i = 0, at = 0; i < touches; i++)
            at = touch(p, at);
    }
}

static void *work(void *arg) {
    struct part *p = arg;
    for (uint64_t i = 0; i < p->pages; i++)
        fill_page(p->first + i * WORDS, p->number + i);
    if (!strcmp(pattern, "chase"))
        link_pages(p);
    pthread_barrier_wait(&filled);
    visit(p);
    return NULL;
}

static double percentile(const uint64_t *histogram, double share) {
    uint64_t all = 0, seen = 0;
    for (int i = 0; i < BUCKETS; i++)
        all += histogram[i];
    int i = 0;
    while (i < BUCKETS - 1 && (seen += histogram[i]) < all * share)
        i++;
    return ldexp(8 + i % 8, i / 8) - 8;
}

int main(int argc, char **argv) {
    if (argc != 7) {
        fputs("usage: access PATTERN MODE THREADS MIB PASSES CONTENT\n", stderr);
        return 2;
    }
    static const char *known[] = {"seq", "stride", "random", "zipf", "phase", "chase"};
    for (unsigned i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(argv[1], known[i]))
            pattern = known[i];
    writes = !strcmp(argv[2], "rw");
    int threads = atoi(argv[3]);
    uint64_t pages = strtoul(argv[4], NULL, 10) << 8;
    passes = atof(argv[5]);
    ratio = atoi(argv[6]);
    if (!pattern || (!writes && strcmp(argv[2], "ro")) || threads < 1 || pages < (uint64_t)threads * 64 || passes <= 0) {
        fputs("access: no such pattern or mode, or a number out of range\n", stderr);
        return 2;
    }
    if (ratio < 1 || ratio > 64) {
        int fd = open(argv[6], O_RDONLY);
        struct stat s;
        if (fd < 0 || fstat(fd, &s) != 0)
            die(argv[6]);
        file_pages = s.st_size / PAGE;
        if (file_pages == 0) {
            fputs("access: no page in the file\n", stderr);
            return 2;
        }
        file = mmap(NULL, s.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (file == MAP_FAILED)
            die("mmap");
    }
    uint64_t *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct part *parts = calloc(threads, sizeof *parts);
    pthread_t *ids = calloc(threads, sizeof *ids);
    if (memory == MAP_FAILED || !parts || !ids)
        die("memory");
    pthread_barrier_init(&filled, NULL, threads + 1);
    double start = now();
    for (int t = 0; t < threads; t++) {
        struct part *p = parts + t;
        p->number = pages / threads * t;
        p->pages = pages / threads / STRIDE * STRIDE;
        p->first = memory + p->number * WORDS;
        p->versions = calloc(p->pages, sizeof *p->versions);
        p->state = (uint64_t)(t + 1) << 40;
        if (!p->versions || pthread_create(ids + t, NULL, work, p) != 0)
            die("thread");
    }
    pthread_barrier_wait(&filled);
    double ready = now();
    uint64_t sum = 0;
    static uint64_t histogram[BUCKETS];
    for (int t = 0; t < threads; t++) {
        pthread_join(ids[t], NULL);
        sum += parts[t].sum;
        for (int i = 0; i < BUCKETS; i++)
            histogram[i] += parts[t].histogram[i];
    }
    double end = now();
    printf("%016lx\n", sum);
    fprintf(stderr, "{\"fill_s\": %.4f, \"access_s\": %.4f, \"p50_ns\": %.0f, \"p99_ns\": %.0f, \"p999_ns\": %.0f}\n",
            ready - start, end - ready, percentile(histogram, 0.5), percentile(histogram, 0.99),
            percentile(histogram, 0.999));
    return 0;
}
