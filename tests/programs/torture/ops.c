// One function per operation class. Each changes memory through one system call and the expectation with it.
#include "world.h"
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static _Thread_local sigjmp_buf probe;
static _Thread_local volatile sig_atomic_t probing;

static void on_fault(int sig, siginfo_t *info, void *context) {
    (void)context;
    if (probing) siglongjmp(probe, 1);
    print_fault(sig, info->si_addr, info->si_code);
    _exit(1);
}

void catch_faults(void) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
}

// Whether an access is refused by the protection, as it must be.
static bool faults(volatile uint64_t *p, bool write) {
    if (sigsetjmp(probe, 1)) {
        probing = 0;
        return true;
    }
    probing = 1;
    if (write) *p = 0xdead;
    else (void)*p;
    probing = 0;
    return false;
}

static char *slot_address(int slot) { return ARENA + (size_t)slot * SLOT_PAGES * PAGE; }

static int claim_slot(Thread *t) {
    for (int n = 0, k = (int)below(t, (unsigned)slot_count); n < slot_count; n++, k = (k + 1) % slot_count) {
        int free = FREE;
        if (atomic_compare_exchange_strong(&slots[k], &free, t->id + 1)) return k;
    }
    return -1;
}

// Announces that the slot is about to be vacated: from now on another thread may claim it.
static void leave(Thread *t, int slot) {
    if (slot >= 0) atomic_store(&slots[slot], -(t->id + 1));
}

// The call that vacates it has returned.
static void left(Thread *t, int slot) {
    if (slot < 0) return;
    int expected = -(t->id + 1);
    if (!atomic_compare_exchange_strong(&slots[slot], &expected, FREE)) t->stolen++;
}

// Whatever the thread asked of the kernel failed although it had announced to leave: empty the slot after all.
static void vacate(Thread *t, Region *r) {
    if (munmap(r->addr, (size_t)r->pages * PAGE)) broken(t, "munmap", r->addr, errno);
    left(t, r->slot);
}

static Region *unused(Thread *t) {
    for (unsigned i = 0; i < t->regions; i++)
        if (!t->region[i].addr) return &t->region[i];
    return NULL;
}

// A region without a protection of its own.
static Region *pick(Thread *t) {
    for (unsigned n = 0, k = below(t, t->regions); n < t->regions; n++, k = (k + 1) % t->regions)
        if (t->region[k].addr && t->region[k].p0 == t->region[k].p1) return &t->region[k];
    return NULL;
}

static void clear(Region *r, unsigned from, unsigned to) { memset(&r->expect[from], 0, (to - from) * sizeof(Expect)); }

static unsigned size_for(Thread *t) {
    unsigned n = below(t, 4) ? 1 + below(t, 200) : below(t, 3) ? 1 + below(t, SLOT_PAGES) : SLOT_PAGES;
    unsigned left = t->budget > t->pages ? t->budget - t->pages : 0;
    return n < left ? n : left;
}

static void settle(Thread *t, Region *r, char *addr, unsigned pages, int slot) {
    Expect *expect = r->expect;
    *r = (Region){.addr = addr, .pages = pages, .slot = slot, .expect = expect};
    t->pages += pages;
    clear(r, 0, pages);
}

static void forget(Thread *t, Region *r) {
    t->pages -= r->pages;
    r->addr = NULL;
    r->p0 = r->p1 = 0;
}

static void drop(Thread *t, Region *r, Op op) {
    leave(t, r->slot);
    note(t, op, r->addr, r->pages, NULL, 0, 0);
    if (munmap(r->addr, (size_t)r->pages * PAGE)) broken(t, "munmap", r->addr, errno);
    left(t, r->slot);
    forget(t, r);
}

static void range(Thread *t, const Region *r, unsigned most, unsigned *from, unsigned *to) {
    *from = below(t, r->pages);
    unsigned rest = r->pages - *from;
    *to = *from + 1 + below(t, rest < most ? rest : most);
    if (*to > r->pages) *to = r->pages;
}

static void fill_some(Thread *t, Region *r) {
    unsigned density = below(t, 4); // leaves holes, so that first touches stay to be done
    for (unsigned i = 0; i < r->pages; i++)
        if (density && below(t, 4) <= density) fill_page(t, r, i);
}

static void do_fill(Thread *t) {
    Region *r = pick(t);
    if (!r) return;
    unsigned a, b;
    range(t, r, 48, &a, &b);
    for (; a < b; a++) fill_page(t, r, a);
}

static void do_touch(Thread *t) {
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

static void do_verify(Thread *t) {
    if (!t->regions) return;
    Region *r = &t->region[below(t, t->regions)];
    if (!r->addr) return;
    unsigned a, b;
    range(t, r, 96, &a, &b);
    for (; a < b; a++) check_page(t, r, a, "verify");
}

static void do_peek(Thread *t) {
    for (int n = 0; n < 24; n++) {
        Region *r = pick(t);
        if (!r) return;
        unsigned i = below(t, r->pages), w = below(t, WORDS);
        if (r->expect[i].freed) continue;
        if (((volatile uint64_t *)(r->addr + (size_t)i * PAGE))[w] != expect_word(&r->expect[i], w)) wrong(t, r, i, w, "peek");
    }
}

static void do_map(Thread *t) {
    Region *r = unused(t);
    unsigned n = size_for(t);
    if (!r || !n) return;
    bool anywhere = below(t, 3) == 0;
    int slot = anywhere ? -1 : claim_slot(t);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (below(t, 4) ? 0 : MAP_NORESERVE) | (below(t, 32) ? 0 : MAP_POPULATE);
    char *at = slot < 0 ? NULL : slot_address(slot);
    char *p = mmap(at, (size_t)n * PAGE, PROT_READ | PROT_WRITE, flags | (at ? MAP_FIXED_NOREPLACE : 0), -1, 0);
    note(t, OP_MAP, at, 0, p, n, p == MAP_FAILED ? errno : 0);
    if (p == MAP_FAILED) broken(t, "mmap", at, errno);
    settle(t, r, p, n, slot);
    fill_some(t, r);
}

static void do_unmap(Thread *t) {
    Region *r = pick(t);
    if (!r) return;
    if (below(t, 2)) check_region(t, r, "before munmap");
    drop(t, r, OP_UNMAP);
}

// Cuts the end off with munmap.
static void do_tail(Thread *t) {
    Region *r = pick(t);
    if (!r || r->pages < 2) return;
    unsigned keep = 1 + below(t, r->pages - 1);
    note(t, OP_TAIL, r->addr + (size_t)keep * PAGE, r->pages - keep, NULL, 0, 0);
    if (munmap(r->addr + (size_t)keep * PAGE, (size_t)(r->pages - keep) * PAGE)) broken(t, "munmap tail", r->addr, errno);
    t->pages -= r->pages - keep;
    r->pages = keep;
}

static void do_fixed(Thread *t) {
    Region *r = pick(t);
    if (!r) return;
    unsigned a = 0, b = r->pages;
    if (!r->wipe && below(t, 3)) range(t, r, 64, &a, &b);
    // A hole first, so that the UNMAP event covers one; only in the arena, where nobody else maps into it.
    if (r->slot >= 0 && below(t, 4) == 0) {
        if (munmap(r->addr + (size_t)a * PAGE, (size_t)(b - a) * PAGE)) broken(t, "munmap hole", r->addr, errno);
        r->mixed = true;
    }
    char *p = mmap(r->addr + (size_t)a * PAGE, (size_t)(b - a) * PAGE, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    note(t, OP_FIXED, NULL, 0, r->addr + (size_t)a * PAGE, b - a, p == MAP_FAILED ? errno : 0);
    if (p == MAP_FAILED) broken(t, "mmap fixed", r->addr, errno);
    if (a == 0 && b == r->pages) r->mixed = r->wipe = false;
    else r->mixed = true;
    clear(r, a, b);
    if (below(t, 2)) fill_page(t, r, a);
    check_page(t, r, b - 1, "after mmap fixed");
}

static void do_dontneed(Thread *t) {
    Region *r = pick(t);
    if (!r) return;
    unsigned a, b;
    range(t, r, 128, &a, &b);
    int e = madvise(r->addr + (size_t)a * PAGE, (size_t)(b - a) * PAGE, MADV_DONTNEED) ? errno : 0;
    note(t, OP_DONTNEED, r->addr + (size_t)a * PAGE, b - a, NULL, 0, e);
    if (e) broken(t, "MADV_DONTNEED", r->addr, e);
    clear(r, a, b);
    switch (below(t, 3)) {
    case 0: for (unsigned i = a; i < b; i++) check_page(t, r, i, "after DONTNEED"); break;
    case 1: for (unsigned i = a; i < b; i++) fill_page(t, r, i); break;
    default: break;
    }
}

static void do_free(Thread *t) {
    Region *r = pick(t);
    if (!r) return;
    unsigned a, b;
    range(t, r, 64, &a, &b);
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

// mremap and what it left, in one place. Returns the new address, or NULL with the region unchanged.
static char *remap(Thread *t, Op op, Region *r, unsigned pages, int flags, void *to) {
    char *old = r->addr;
    char *p = mremap(old, (size_t)r->pages * PAGE, (size_t)pages * PAGE, flags, to);
    int e = p == MAP_FAILED ? errno : 0;
    note(t, op, old, r->pages, e ? to : p, pages, e);
    if (!e) return p;
    // ENOMEM: no room to grow in place, or too many mappings. EFAULT: more than one mapping underneath.
    if (e == EFAULT || e == ENOMEM) {
        t->refused += e == EFAULT && !r->mixed;
        return NULL;
    }
    broken(t, "mremap", old, e);
}

static void resized(Thread *t, Region *r, char *addr, unsigned pages, int slot) {
    if (pages > r->pages) clear(r, r->pages, pages);
    t->pages += pages - r->pages;
    r->pages = pages;
    r->addr = addr;
    r->slot = slot;
}

static void do_grow(Thread *t) {
    Region *r = pick(t);
    if (!r || r->pages >= SLOT_PAGES || t->pages >= t->budget) return;
    unsigned n = r->pages + 1 + below(t, SLOT_PAGES - r->pages), old = r->pages;
    if (t->pages + n - old > t->budget) n = old + (t->budget - t->pages);
    // In the arena growth must stay in the slot; elsewhere the kernel may move it.
    char *p = remap(t, OP_GROW, r, n, r->slot < 0 ? MREMAP_MAYMOVE : 0, NULL);
    if (!p) return;
    resized(t, r, p, n, r->slot);
    if (below(t, 2)) fill_page(t, r, n - 1);
    check_page(t, r, old, "first grown page");
    check_page(t, r, old - 1, "last old page");
}

static void do_shrink(Thread *t) {
    Region *r = pick(t);
    if (!r || r->pages < 2) return;
    unsigned n = 1 + below(t, r->pages - 1);
    char *p = remap(t, OP_SHRINK, r, n, 0, NULL);
    if (!p) return;
    resized(t, r, p, n, r->slot);
    check_page(t, r, n - 1, "last page after shrink");
}

// To a free slot of the arena, with a new length or the old one.
static void do_move(Thread *t) {
    Region *r = pick(t);
    if (!r || r->mixed) return;
    int slot = claim_slot(t);
    if (slot < 0) return;
    unsigned n = r->pages;
    if (below(t, 2)) n = 1 + below(t, SLOT_PAGES);
    if (n > r->pages && t->pages + n - r->pages > t->budget) n = r->pages;
    int from = r->slot;
    leave(t, from);
    char *p = remap(t, OP_MOVE, r, n, MREMAP_MAYMOVE | MREMAP_FIXED, slot_address(slot));
    if (!p) {
        vacate(t, r);
        forget(t, r);
        atomic_store(&slots[slot], FREE);
        t->lost++;
        return;
    }
    left(t, from);
    resized(t, r, p, n, slot);
    if (below(t, 2)) check_region(t, r, "after move");
}

// Onto another region of ours, which dies.
static void do_onto(Thread *t) {
    Region *r = pick(t), *victim = pick(t);
    if (!r || !victim || r == victim || r->mixed || victim->slot < 0) return;
    int from = r->slot;
    leave(t, from);
    char *p = remap(t, OP_ONTO, r, r->pages, MREMAP_MAYMOVE | MREMAP_FIXED, victim->addr);
    if (!p) {
        vacate(t, r);
        forget(t, r);
        drop(t, victim, OP_ONTO); // a failed mremap may have unmapped it already; munmap does not mind
        t->lost++;
        return;
    }
    left(t, from);
    int slot = victim->slot;
    // The victim may have been longer: what remains of it is unmapped, so that the slot has one region.
    if (victim->pages > r->pages &&
        munmap(victim->addr + (size_t)r->pages * PAGE, (size_t)(victim->pages - r->pages) * PAGE))
        broken(t, "munmap rest", victim->addr, errno);
    forget(t, victim);
    resized(t, r, p, r->pages, slot);
    if (below(t, 2)) check_region(t, r, "after move onto");
}

static void do_dontunmap(Thread *t) {
    Region *r = pick(t), *empty = unused(t);
    if (!r || !empty || r->mixed || t->pages + r->pages > t->budget) return;
    int slot = claim_slot(t);
    if (slot < 0) return;
    char *p = remap(t, OP_DONTUNMAP, r, r->pages, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, slot_address(slot));
    if (!p) {
        munmap(slot_address(slot), (size_t)SLOT_PAGES * PAGE);
        atomic_store(&slots[slot], FREE);
        return;
    }
    settle(t, empty, p, r->pages, slot);
    empty->wipe = r->wipe;
    memcpy(empty->expect, r->expect, r->pages * sizeof(Expect));
    clear(r, 0, r->pages);
    if (below(t, 2)) check_region(t, r, "source of DONTUNMAP");
    if (below(t, 2)) check_region(t, empty, "target of DONTUNMAP");
}

// Takes a slot whose owner is still inside the call that vacates it.
static void do_steal(Thread *t) {
    int slot = -1;
    for (int n = 0, k = (int)below(t, (unsigned)slot_count); n < slot_count && slot < 0; n++, k = (k + 1) % slot_count) {
        int leaving = atomic_load(&slots[k]);
        if (leaving < 0 && atomic_compare_exchange_strong(&slots[k], &leaving, t->id + 1)) slot = k;
    }
    if (slot < 0) return;
    char *at = slot_address(slot);
    Region *r = pick(t);
    if (r && !r->mixed && r->slot != slot && below(t, 2)) {
        // Move a region there as soon as the first page is gone (it goes together with the rest).
        while (msync(at, PAGE, MS_ASYNC) == 0) sched_yield();
        int from = r->slot;
        leave(t, from);
        char *p = remap(t, OP_STEAL, r, r->pages, MREMAP_MAYMOVE | MREMAP_FIXED, at);
        if (!p) {
            vacate(t, r);
            forget(t, r);
            atomic_store(&slots[slot], FREE);
            t->lost++;
            return;
        }
        left(t, from);
        resized(t, r, p, r->pages, slot);
        check_region(t, r, "after move to a stolen slot");
        return;
    }
    Region *fresh = unused(t);
    unsigned n = size_for(t);
    if (!fresh || !n) {
        // Nothing to put there: wait until it is empty, then give it back.
        while (msync(at, PAGE, MS_ASYNC) == 0) sched_yield();
        atomic_store(&slots[slot], FREE);
        return;
    }
    char *p;
    do {
        p = mmap(at, (size_t)n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    } while (p == MAP_FAILED && errno == EEXIST && (sched_yield(), 1));
    note(t, OP_STEAL, NULL, 0, at, n, p == MAP_FAILED ? errno : 0);
    if (p == MAP_FAILED) broken(t, "mmap of a stolen slot", at, errno);
    settle(t, fresh, p, n, slot);
    if (below(t, 2)) check_region(t, fresh, "fresh mapping at a stolen slot");
    fill_some(t, fresh);
}

static void unprotect(Thread *t, Region *r) {
    if (r->prot == PROT_READ) {
        for (unsigned i = r->p0; i < r->p1; i++) check_page(t, r, i, "read-only");
        if (!faults((uint64_t *)(r->addr + (size_t)r->p0 * PAGE), true)) broken(t, "write to a read-only page", r->addr, 0);
    } else if (!faults((uint64_t *)(r->addr + (size_t)r->p0 * PAGE), false)) {
        broken(t, "read of a PROT_NONE page", r->addr, 0);
    }
    char *p = r->addr + (size_t)r->p0 * PAGE;
    int e = mprotect(p, (size_t)(r->p1 - r->p0) * PAGE, PROT_READ | PROT_WRITE) ? errno : 0;
    note(t, OP_PROTECT, p, r->p1 - r->p0, NULL, 0, e);
    if (e) broken(t, "mprotect back", p, e);
    unsigned a = r->p0, b = r->p1;
    r->p0 = r->p1 = 0;
    for (; a < b; a++) check_page(t, r, a, "after mprotect back");
}

void expire_protections(Thread *t, bool all) {
    for (unsigned i = 0; i < t->regions; i++) {
        Region *r = &t->region[i];
        if (r->addr && r->p0 != r->p1 && (all || t->ops >= r->until)) unprotect(t, r);
    }
}

static void do_protect(Thread *t) {
    Region *r = pick(t);
    if (!r) return;
    unsigned a = 0, b = r->pages;
    if (below(t, 2)) range(t, r, 64, &a, &b);
    int prot = below(t, 2) ? PROT_READ : PROT_NONE;
    int e = mprotect(r->addr + (size_t)a * PAGE, (size_t)(b - a) * PAGE, prot) ? errno : 0;
    note(t, OP_PROTECT, r->addr + (size_t)a * PAGE, b - a, NULL, 0, e);
    if (e) broken(t, "mprotect", r->addr, e);
    if (a || b != r->pages) r->mixed = true;
    r->p0 = a;
    r->p1 = b;
    r->prot = prot;
    r->until = t->ops + below(t, 60);
}

// The kernel reads and writes paged memory: pages travel through a pipe.
static void do_pipe(Thread *t) {
    Region *from = pick(t), *to = pick(t);
    if (!from || !to) return;
    unsigned n = 1 + below(t, 15);
    if (n > from->pages) n = from->pages;
    if (n > to->pages) n = to->pages;
    unsigned a = below(t, from->pages - n + 1), b = below(t, to->pages - n + 1);
    if (from == to && a < b + n && b < a + n) return;
    for (unsigned i = 0; i < n; i++)
        if (from->expect[a + i].freed) fill_page(t, from, a + i);
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

static void heap_step(Thread *t, Region *heap) {
    if (!heap->addr) {
        char *top = sbrk(0);
        if (sbrk((intptr_t)(-(uintptr_t)top & (PAGE - 1))) == (void *)-1) return;
        heap->addr = sbrk(0);
    }
    if (heap->pages && below(t, 2)) {
        unsigned keep = below(t, heap->pages);
        check_region(t, heap, "heap before it shrinks");
        note(t, OP_BRK, heap->addr + (size_t)keep * PAGE, heap->pages - keep, NULL, 0, 0);
        if (sbrk(-(intptr_t)((heap->pages - keep) * PAGE)) == (void *)-1) broken(t, "sbrk shrink", heap->addr, errno);
        heap->pages = keep;
    } else if (heap->pages < HEAP_PAGES) {
        unsigned more = 1 + below(t, HEAP_PAGES - heap->pages), first = heap->pages;
        char *p = sbrk((intptr_t)more * PAGE);
        note(t, OP_BRK, NULL, 0, p, more, p == (void *)-1 ? errno : 0);
        if (p == (void *)-1) return;
        if (p != heap->addr + (size_t)heap->pages * PAGE) broken(t, "sbrk moved", p, 0);
        clear(heap, first, first + more);
        heap->pages += more;
        check_page(t, heap, first, "fresh heap");
        for (unsigned i = first; i < heap->pages; i++)
            if (below(t, 2)) fill_page(t, heap, i);
    }
    if (heap->pages) check_page(t, heap, below(t, heap->pages), "heap");
}

// Grows and shrinks the heap with sbrk, as only malloc does; thread 0 alone, and no thread calls malloc.
static void do_brk(Thread *t) {
    static Expect expect[HEAP_PAGES];
    static Region heap = {.expect = expect};
    if (t->id != 0) return;
    pthread_mutex_lock(&heap_lock);
    // The main thread creates threads, and its malloc may have grown the heap past ours: leave that piece behind.
    if (heap.addr && sbrk(0) != heap.addr + (size_t)heap.pages * PAGE) heap = (Region){.expect = expect};
    heap_step(t, &heap);
    pthread_mutex_unlock(&heap_lock);
}

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

static void do_guard(Thread *t) {
    Region *r = pick(t);
    if (!r) return;
    unsigned a, b;
    range(t, r, 16, &a, &b);
    char *p = r->addr + (size_t)a * PAGE;
    if (madvise(p, (size_t)(b - a) * PAGE, MADV_GUARD_INSTALL)) {
        if (errno == EINVAL) return; // before Linux 6.13
        broken(t, "MADV_GUARD_INSTALL", p, errno);
    }
    note(t, OP_GUARD, p, b - a, NULL, 0, 0);
    if (!faults((uint64_t *)p, below(t, 2))) broken(t, "access to a guard page", p, 0);
    if (madvise(p, (size_t)(b - a) * PAGE, MADV_GUARD_REMOVE)) broken(t, "MADV_GUARD_REMOVE", p, errno);
    clear(r, a, b);
    for (; a < b; a++) check_page(t, r, a, "after guard");
}

static void do_mlock(Thread *t) {
    Region *r = pick(t);
    if (!r) return;
    unsigned a, b;
    range(t, r, 4, &a, &b);
    char *p = r->addr + (size_t)a * PAGE;
    if (mlock(p, (size_t)(b - a) * PAGE)) return; // over RLIMIT_MEMLOCK
    r->mixed = true;
    for (unsigned i = a; i < b; i++) check_page(t, r, i, "locked");
    for (unsigned i = a; i < b; i++) fill_page(t, r, i);
    if (munlock(p, (size_t)(b - a) * PAGE)) broken(t, "munlock", p, errno);
    for (; a < b; a++) check_page(t, r, a, "after munlock");
}

static void do_wipe(Thread *t) {
    Region *r = pick(t);
    if (!r) return;
    if (madvise(r->addr, (size_t)r->pages * PAGE, r->wipe ? MADV_KEEPONFORK : MADV_WIPEONFORK))
        broken(t, "MADV_WIPEONFORK", r->addr, errno);
    r->wipe = !r->wipe;
}

static void do_huge(Thread *t) {
    Region *r = pick(t);
    if (!r || r->pages < SLOT_PAGES || r->slot < 0) return;
    // Fails where the kernel has no huge pages; nothing depends on it.
    madvise(r->addr, (size_t)r->pages * PAGE, below(t, 2) ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    if (below(t, 2)) {
        if (madvise(r->addr, (size_t)r->pages * PAGE, MADV_DONTNEED)) broken(t, "MADV_DONTNEED", r->addr, errno);
        note(t, OP_HUGE, r->addr, r->pages, NULL, 0, 0);
        clear(r, 0, r->pages);
        for (unsigned i = 0; i < r->pages; i++) fill_page(t, r, i);
    }
}

// Deep stack use: pages that were evicted under a stack that goes down and up again.
static void __attribute__((noinline)) do_stack(Thread *t) {
    uint64_t deep[24 * WORDS];
    uint64_t tag = rnd(t) | 1;
    for (unsigned i = 0; i < 24 * WORDS; i++) deep[i] = page_word(tag, i);
    do_fill(t);
    do_verify(t);
    __asm__ volatile("" ::"r"(deep) : "memory");
    for (unsigned i = 0; i < 24 * WORDS; i++)
        if (deep[i] != page_word(tag, i)) broken(t, "stack", &deep[i], 0);
}

void run_op(Thread *t, Op op) {
    t->counts[op]++;
    switch (op) {
    case OP_FILL: do_fill(t); break;
    case OP_TOUCH: do_touch(t); break;
    case OP_VERIFY: do_verify(t); break;
    case OP_PEEK: do_peek(t); break;
    case OP_MAP: do_map(t); break;
    case OP_UNMAP: do_unmap(t); break;
    case OP_TAIL: do_tail(t); break;
    case OP_FIXED: do_fixed(t); break;
    case OP_DONTNEED: do_dontneed(t); break;
    case OP_MFREE: do_free(t); break;
    case OP_GROW: do_grow(t); break;
    case OP_SHRINK: do_shrink(t); break;
    case OP_MOVE: do_move(t); break;
    case OP_ONTO: do_onto(t); break;
    case OP_DONTUNMAP: do_dontunmap(t); break;
    case OP_STEAL: do_steal(t); break;
    case OP_PROTECT: do_protect(t); break;
    case OP_PIPE: do_pipe(t); break;
    case OP_FORK: op_fork(t); break;
    case OP_SPAWN: op_spawn(t); break;
    case OP_BRK: do_brk(t); break;
    case OP_GUARD: do_guard(t); break;
    case OP_MLOCK: do_mlock(t); break;
    case OP_WIPE: do_wipe(t); break;
    case OP_HUGE: do_huge(t); break;
    case OP_STACK: do_stack(t); break;
    case OP_COUNT: break;
    }
}
