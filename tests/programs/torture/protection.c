// Operations that protect, guard, lock and wipe, and the heap, which only sbrk moves.
#include "ops.h"
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
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

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

static void unguard(Thread *t, Region *r) {
    char *p = r->addr + (size_t)r->p0 * PAGE;
    if (!faults((uint64_t *)p + below(t, (r->p1 - r->p0) * WORDS), below(t, 2))) broken(t, "access to a guard page", p, 0);
    if (madvise(p, (size_t)(r->p1 - r->p0) * PAGE, MADV_GUARD_REMOVE)) broken(t, "MADV_GUARD_REMOVE", p, errno);
    note(t, OP_GUARD, p, r->p1 - r->p0, NULL, 0, 1);
    clear_pages(r, r->p0, r->p1);
    unsigned a = r->p0, b = r->p1;
    r->p0 = r->p1 = 0;
    for (; a < b; a++) check_page(t, r, a, "after guard");
}

static void unprotect(Thread *t, Region *r) {
    if (r->prot == PROT_GUARD) return unguard(t, r);
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

void do_protect(Thread *t) {
    Region *r = pick(t);
    if (!r) return;
    unsigned a = 0, b = r->pages;
    if (below(t, 2)) pick_range(t, r, 64, &a, &b);
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

void do_guard(Thread *t) {
    Region *r = pick(t);
    if (!r) return;
    unsigned a, b;
    pick_range(t, r, 16, &a, &b);
    char *p = r->addr + (size_t)a * PAGE;
    if (madvise(p, (size_t)(b - a) * PAGE, MADV_GUARD_INSTALL)) {
        if (errno == EINVAL) return; // before Linux 6.13
        broken(t, "MADV_GUARD_INSTALL", p, errno);
    }
    note(t, OP_GUARD, p, b - a, NULL, 0, 0);
    r->p0 = a;
    r->p1 = b;
    r->prot = PROT_GUARD;
    r->until = t->ops + below(t, 60);
    if (below(t, 2)) unguard(t, r); // at once, or after other operations and forks
}

void do_mlock(Thread *t) {
    Region *r = pick(t);
    if (!r) return;
    unsigned a, b;
    pick_range(t, r, 4, &a, &b);
    char *p = r->addr + (size_t)a * PAGE;
    if (mlock(p, (size_t)(b - a) * PAGE)) return; // over RLIMIT_MEMLOCK
    r->mixed = true;
    for (unsigned i = a; i < b; i++) check_page(t, r, i, "locked");
    for (unsigned i = a; i < b; i++) fill_page(t, r, i);
    if (munlock(p, (size_t)(b - a) * PAGE)) broken(t, "munlock", p, errno);
    for (; a < b; a++) check_page(t, r, a, "after munlock");
}

void do_wipe(Thread *t) {
    Region *r = pick(t);
    if (!r) return;
    if (madvise(r->addr, (size_t)r->pages * PAGE, r->wipe ? MADV_KEEPONFORK : MADV_WIPEONFORK))
        broken(t, "MADV_WIPEONFORK", r->addr, errno);
    note(t, OP_WIPE, r->addr, r->pages, NULL, 0, !r->wipe);
    r->wipe = !r->wipe;
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
        clear_pages(heap, first, first + more);
        heap->pages += more;
        check_page(t, heap, first, "fresh heap");
        for (unsigned i = first; i < heap->pages; i++)
            if (below(t, 2)) fill_page(t, heap, i);
    }
    if (heap->pages) check_page(t, heap, below(t, heap->pages), "heap");
}

// Grows and shrinks the heap with sbrk, as only malloc does; thread 0 alone, and no thread calls malloc.
void do_brk(Thread *t) {
    static Expect expect[HEAP_PAGES];
    static Region heap = {.expect = expect};
    if (t->id != 0) return;
    pthread_mutex_lock(&heap_lock);
    // The main thread creates threads, and its malloc may have grown the heap past ours: leave that piece behind.
    if (heap.addr && sbrk(0) != heap.addr + (size_t)heap.pages * PAGE) heap = (Region){.expect = expect};
    heap_step(t, &heap);
    pthread_mutex_unlock(&heap_lock);
}
