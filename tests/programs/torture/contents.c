// Operations that change or check what is in the pages, and leave the mappings alone.
#include "ops.h"
#include <errno.h>
#include <string.h>
#include <unistd.h>

void do_fill(Thread *t) {
    Region *r = pick(t);
    if (!r) return;
    unsigned a, b;
    pick_range(t, r, 48, &a, &b);
    for (; a < b; a++) fill_page(t, r, a);
}

void do_touch(Thread *t) {
    Region *r = pick(t);
    if (!r) return;
    for (int n = 0; n < 24; n++) {
        unsigned i = below(t, r->pages);
        Expect *e = &r->expect[i];
        volatile uint64_t *word = (uint64_t *)(r->addr + (size_t)i * PAGE) + COUNT_WORD;
        if (e->freed) {
            fill_page(t, r, i);
            continue;
        }
        uint64_t got = *word;
        if (got != expect_word(e, COUNT_WORD)) wrong(t, r, i, COUNT_WORD, "touch");
        *word = got + 1;
        e->count++;
    }
}

void do_verify(Thread *t) {
    if (!t->regions) return;
    Region *r = &t->region[below(t, t->regions)];
    if (!r->addr) return;
    unsigned a, b;
    pick_range(t, r, 96, &a, &b);
    for (; a < b; a++) check_page(t, r, a, "verify");
}

void do_peek(Thread *t) {
    for (int n = 0; n < 24; n++) {
        Region *r = pick(t);
        if (!r) return;
        unsigned i = below(t, r->pages), w = below(t, WORDS);
        if (r->expect[i].freed) continue;
        if (((volatile uint64_t *)(r->addr + (size_t)i * PAGE))[w] != expect_word(&r->expect[i], w)) wrong(t, r, i, w, "peek");
    }
}

void do_dontneed(Thread *t) {
    Region *r = pick(t);
    if (!r) return;
    unsigned a, b;
    pick_range(t, r, 128, &a, &b);
    int e = madvise(r->addr + (size_t)a * PAGE, (size_t)(b - a) * PAGE, MADV_DONTNEED) ? errno : 0;
    note(t, OP_DONTNEED, r->addr + (size_t)a * PAGE, b - a, NULL, 0, e);
    if (e) broken(t, "MADV_DONTNEED", r->addr, e);
    clear_pages(r, a, b);
    switch (below(t, 3)) {
    case 0: for (unsigned i = a; i < b; i++) check_page(t, r, i, "after DONTNEED"); break;
    case 1: for (unsigned i = a; i < b; i++) fill_page(t, r, i); break;
    default: break;
    }
}

void do_free(Thread *t) {
    Region *r = pick(t);
    if (!r) return;
    unsigned a, b;
    pick_range(t, r, 64, &a, &b);
    int e = madvise(r->addr + (size_t)a * PAGE, (size_t)(b - a) * PAGE, MADV_FREE) ? errno : 0;
    note(t, OP_MFREE, r->addr + (size_t)a * PAGE, b - a, NULL, 0, e);
    if (e) broken(t, "MADV_FREE", r->addr, e);
    for (unsigned i = a; i < b; i++) r->expect[i].freed = r->expect[i].tag || r->expect[i].count;
    for (unsigned i = a; i < b && below(t, 4); i++) {
        Expect *x = &r->expect[i];
        volatile uint64_t *p = (volatile uint64_t *)(r->addr + (size_t)i * PAGE);
        if (!x->freed) continue;
        // One word is written: the rest is from now on either all old or all zero, and stays so.
        uint64_t value = expect_word(x, COUNT_WORD) + 1;
        p[COUNT_WORD] = value;
        bool old = false;
        for (unsigned w = 0; w < WORDS && !old; w++) old = w != COUNT_WORD && p[w] != 0;
        if (old || x->tag == 0) {
            x->freed = 0;
            if (!old && p[COUNT_WORD] != value) wrong(t, r, i, COUNT_WORD, "write after FREE");
            x->count++;
            check_page(t, r, i, "write after FREE");
        } else {
            if (p[COUNT_WORD] != value) wrong(t, r, i, COUNT_WORD, "write after FREE");
            fill_page(t, r, i);
        }
    }
}

// The kernel reads and writes paged memory: pages travel through a pipe.
void do_pipe(Thread *t) {
    Region *from, *to;
    unsigned a, b, n = pick_copy(t, 15, &from, &a, &to, &b);
    if (!n) return;
    size_t bytes = (size_t)n * PAGE;
    ssize_t w = write(t->pipe[1], from->addr + (size_t)a * PAGE, bytes);
    if (w != (ssize_t)bytes) broken(t, "write(2) from paged memory", from->addr + (size_t)a * PAGE, w < 0 ? errno : 0);
    for (size_t got = 0; got < bytes;) {
        ssize_t k = read(t->pipe[0], to->addr + (size_t)b * PAGE + got, bytes - got);
        if (k <= 0) broken(t, "read(2) to paged memory", to->addr + (size_t)b * PAGE + got, k < 0 ? errno : 0);
        got += (size_t)k;
    }
    note(t, OP_PIPE, from->addr + (size_t)a * PAGE, n, to->addr + (size_t)b * PAGE, n, 0);
    memcpy(&to->expect[b], &from->expect[a], n * sizeof(Expect));
    for (unsigned i = 0; i < n; i++) check_page(t, to, b + i, "after pipe");
}

void do_huge(Thread *t) {
    Region *r = pick(t);
    if (!r || r->pages < SLOT_PAGES || r->slot < 0) return;
    // Fails where the kernel has no huge pages; nothing depends on it.
    madvise(r->addr, (size_t)r->pages * PAGE, below(t, 2) ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    if (below(t, 2)) {
        if (madvise(r->addr, (size_t)r->pages * PAGE, MADV_DONTNEED)) broken(t, "MADV_DONTNEED", r->addr, errno);
        note(t, OP_HUGE, r->addr, r->pages, NULL, 0, 0);
        clear_pages(r, 0, r->pages);
        for (unsigned i = 0; i < r->pages; i++) fill_page(t, r, i);
    }
}
