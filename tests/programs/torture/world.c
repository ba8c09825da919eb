// Checking a page, and the report when it is wrong.
#include "world.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

uint64_t now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void note(Thread *t, Op op, const void *from, unsigned from_pages, const void *to, unsigned to_pages, int result) {
    t->history[t->events++ % HISTORY] =
        (Event){now_ns(), (uint64_t)from, (uint64_t)to, from_pages, to_pages, (int)op, result};
}

// Everything any thread did to this address lately, oldest first within a thread.
static void print_history(uint64_t address) {
    for (int i = 0; i < thread_count; i++) {
        Thread *t = &threads[i];
        uint64_t first = t->events > HISTORY ? t->events - HISTORY : 0;
        for (uint64_t k = first; k < t->events; k++) {
            const Event *e = &t->history[k % HISTORY];
            bool from = e->from <= address && address < e->from + (uint64_t)e->from_pages * PAGE;
            bool to = e->to <= address && address < e->to + (uint64_t)e->to_pages * PAGE;
            if (!from && !to && e->op != OP_FORK) continue;
            fprintf(stderr, "  %.6f thread %d %-9s %#" PRIx64 "+%u -> %#" PRIx64 "+%u result %d\n", (double)e->at / 1e9,
                    i, op_names[e->op], e->from, e->from_pages, e->to, e->to_pages, e->result);
        }
    }
}

// What the page holds instead.
static void identify(const uint64_t *p, const Expect *e) {
    if (page_is_zero(p)) {
        fprintf(stderr, "  the whole page is zero\n");
        return;
    }
    unsigned good = 0, zero = 0;
    for (unsigned i = 0; i < WORDS; i++) {
        good += p[i] == expect_word(e, i);
        zero += p[i] == 0;
    }
    fprintf(stderr, "  %u of %d words are right, %u are zero\n", good, WORDS, zero);
    // A page of another time or place: its generator is found by trying the tags that exist.
    for (int i = 0; i < thread_count; i++)
        for (uint64_t serial = threads[i].serial, n = 0; serial && n < 2000000; serial--, n++)
            for (unsigned kind = 0; kind < KINDS; kind++) {
                uint64_t tag = (uint64_t)(i + 1) << 56 | serial << 3 | kind;
                if (page_word(tag, 0) != p[0] || page_word(tag, WORDS - 1) != p[WORDS - 1]) continue;
                fprintf(stderr, "  it is page tag %#" PRIx64 " (thread %d, %" PRIu64 " fills ago, kind %u), count %" PRIu64 "\n",
                        tag, i, n, kind, p[COUNT_WORD] - page_word(tag, COUNT_WORD));
                return;
            }
}

void report_wrong(void) {
    if (write(REPORT_FD, "W", 1) < 0) return; // there is none, or nobody listens
}

_Noreturn void wrong(Thread *t, const Region *r, unsigned page, unsigned word, const char *when) {
    const uint64_t *p = (const uint64_t *)(r->addr + (size_t)page * PAGE);
    const Expect *e = &r->expect[page];
    report_wrong();
    uint64_t got = p[word];
    fprintf(stderr,
            "torture: WRONG pid %d thread %d (%s, op %" PRIu64 ", %.6f): region %p+%u page %u address %p: expected %#" PRIx64
            " got %#" PRIx64 " (tag %#" PRIx64 " count %u%s), seed %" PRIu64 "\n",
            getpid(), t->id, when, t->ops, (double)now_ns() / 1e9, (void *)r->addr, r->pages, page, (void *)&p[word],
            expect_word(e, word), got, e->tag, e->count, e->freed ? ", freed" : "", seed_given);
    fprintf(stderr, "  read again: %#" PRIx64 "\n", *(volatile const uint64_t *)&p[word]);
    identify(p, e);
    print_history((uint64_t)p);
    fflush(stderr);
    _exit(1);
}

_Noreturn void broken(Thread *t, const char *what, const void *addr, int error) {
    report_wrong();
    fprintf(stderr, "torture: WRONG pid %d thread %d: %s at %p: %s, seed %" PRIu64 "\n", getpid(), t->id, what, addr,
            error ? strerror(error) : "must not happen", seed_given);
    print_history((uint64_t)addr);
    fflush(stderr);
    _exit(1);
}

void check_page(Thread *t, Region *r, unsigned page, const char *when) {
    if (page >= r->p0 && page < r->p1 && (r->prot == PROT_NONE || r->prot == PROT_GUARD)) return;
    const uint64_t *p = (const uint64_t *)(r->addr + (size_t)page * PAGE);
    Expect *e = &r->expect[page];
    t->verified++;
    atomic_fetch_add_explicit(t->progress, 1, memory_order_relaxed);
    if (e->freed && p[0] == 0 && p[COUNT_WORD] == 0 && page_is_zero(p)) {
        *e = (Expect){0}; // once it is gone it must stay gone
        return;
    }
    for (unsigned i = 0; i < WORDS; i++)
        if (p[i] != expect_word(e, i)) {
            // The kernel may take a freed page away between two reads; then all of it is zero now.
            if (e->freed && page_is_zero(p)) {
                *e = (Expect){0};
                return;
            }
            wrong(t, r, page, i, when);
        }
}

void check_region(Thread *t, Region *r, const char *when) {
    for (unsigned i = 0; i < r->pages; i++) check_page(t, r, i, when);
}

void fill_page(Thread *t, Region *r, unsigned page) {
    uint64_t *p = (uint64_t *)(r->addr + (size_t)page * PAGE);
    Expect *e = &r->expect[page];
    *e = (Expect){.tag = (uint64_t)(t->id + 1) << 56 | ++t->serial << 3 | below(t, KINDS)};
    for (unsigned i = 0; i < WORDS; i++) p[i] = page_word(e->tag, i);
}

void print_fault(int sig, void *addr, int code) {
    report_wrong();
    fprintf(stderr, "torture: WRONG pid %d: unexpected signal %d at %p code %d, seed %" PRIu64 "\n", getpid(), sig, addr, code,
            seed_given);
    print_history((uint64_t)addr);
}
