// Operations that map, unmap and move. Each changes memory through one system call and the expectation with it.
#include "ops.h"
#include <errno.h>
#include <sched.h>
#include <string.h>

void do_map(Thread *t) {
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

void do_unmap(Thread *t) {
    Region *r = pick(t);
    if (!r) return;
    if (below(t, 2)) check_region(t, r, "before munmap");
    drop(t, r, OP_UNMAP);
}

// Cuts the end off with munmap.
void do_tail(Thread *t) {
    Region *r = pick(t);
    if (!r || r->pages < 2) return;
    unsigned keep = 1 + below(t, r->pages - 1);
    note(t, OP_TAIL, r->addr + (size_t)keep * PAGE, r->pages - keep, NULL, 0, 0);
    if (munmap(r->addr + (size_t)keep * PAGE, (size_t)(r->pages - keep) * PAGE)) broken(t, "munmap tail", r->addr, errno);
    t->pages -= r->pages - keep;
    r->pages = keep;
}

void do_fixed(Thread *t) {
    Region *r = pick(t);
    if (!r) return;
    unsigned a = 0, b = r->pages;
    if (!r->wipe && below(t, 3)) pick_range(t, r, 64, &a, &b);
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
    clear_pages(r, a, b);
    if (below(t, 2)) fill_page(t, r, a);
    check_page(t, r, b - 1, "after mmap fixed");
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
    if (pages > r->pages) clear_pages(r, r->pages, pages);
    t->pages += pages - r->pages;
    r->pages = pages;
    r->addr = addr;
    r->slot = slot;
}

void do_grow(Thread *t) {
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

void do_shrink(Thread *t) {
    Region *r = pick(t);
    if (!r || r->pages < 2) return;
    unsigned n = 1 + below(t, r->pages - 1);
    char *p = remap(t, OP_SHRINK, r, n, 0, NULL);
    if (!p) return;
    resized(t, r, p, n, r->slot);
    check_page(t, r, n - 1, "last page after shrink");
}

// To a slot of the arena that is the thread's, with `n` pages if its budget has room for them. If the kernel refuses, the
// region is lost.
static bool move_to(Thread *t, Op op, Region *r, unsigned n, int slot) {
    if (n > r->pages && t->pages + n - r->pages > t->budget) n = r->pages;
    int from = r->slot;
    leave_slot(t, from);
    char *p = remap(t, op, r, n, MREMAP_MAYMOVE | MREMAP_FIXED, slot_address(slot));
    if (!p) {
        vacate(t, r);
        forget(t, r);
        atomic_store(&slots[slot], FREE);
        t->lost++;
        return false;
    }
    left_slot(t, from);
    resized(t, r, p, n, slot);
    return true;
}

// To a free slot of the arena, with a new length or the old one.
void do_move(Thread *t) {
    Region *r = pick(t);
    if (!r || r->mixed) return;
    int slot = claim_slot(t);
    if (slot < 0) return;
    unsigned n = r->pages;
    if (below(t, 2)) n = 1 + below(t, SLOT_PAGES);
    if (move_to(t, OP_MOVE, r, n, slot) && below(t, 2)) check_region(t, r, "after move");
}

// Onto another region of ours, which dies.
void do_onto(Thread *t) {
    Region *r = pick(t), *victim = pick(t);
    if (!r || !victim || r == victim || r->mixed || victim->slot < 0) return;
    int from = r->slot;
    leave_slot(t, from);
    char *p = remap(t, OP_ONTO, r, r->pages, MREMAP_MAYMOVE | MREMAP_FIXED, victim->addr);
    if (!p) {
        vacate(t, r);
        forget(t, r);
        drop(t, victim, OP_ONTO); // a failed mremap may have unmapped it already; munmap does not mind
        t->lost++;
        return;
    }
    left_slot(t, from);
    int slot = victim->slot;
    // The victim may have been longer: what remains of it is unmapped, so that the slot has one region.
    if (victim->pages > r->pages &&
        munmap(victim->addr + (size_t)r->pages * PAGE, (size_t)(victim->pages - r->pages) * PAGE))
        broken(t, "munmap rest", victim->addr, errno);
    forget(t, victim);
    resized(t, r, p, r->pages, slot);
    if (below(t, 2)) check_region(t, r, "after move onto");
}

void do_dontunmap(Thread *t) {
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
    clear_pages(r, 0, r->pages);
    if (below(t, 2)) check_region(t, r, "source of DONTUNMAP");
    if (below(t, 2)) check_region(t, empty, "target of DONTUNMAP");
}

// Takes a slot whose owner is still inside the call that vacates it.
void do_steal(Thread *t) {
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
        leave_slot(t, from);
        char *p = remap(t, OP_STEAL, r, r->pages, MREMAP_MAYMOVE | MREMAP_FIXED, at);
        if (!p) {
            vacate(t, r);
            forget(t, r);
            atomic_store(&slots[slot], FREE);
            t->lost++;
            return;
        }
        left_slot(t, from);
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

static Region *pick_protected(Thread *t) {
    for (unsigned n = 0, k = below(t, t->regions); n < t->regions; n++, k = (k + 1) % t->regions) {
        Region *r = &t->region[k];
        if (r->addr && r->p0 == 0 && r->p1 == r->pages && r->prot != PROT_GUARD && !r->mixed) return r;
    }
    return NULL;
}

// Changes a mapping that is PROT_READ or PROT_NONE as a whole, and stays so.
void do_shift(Thread *t) {
    Region *r = pick_protected(t);
    if (!r) return;
    if (sabotages(t, "shift") && r->expect[0].tag && mprotect(r->addr, PAGE, PROT_READ | PROT_WRITE) == 0) {
        *(uint64_t *)r->addr ^= 1;
        if (mprotect(r->addr, PAGE, r->prot)) broken(t, "mprotect", r->addr, errno);
    }
    if (below(t, 8) == 0) return drop(t, r, OP_SHIFT);
    if (below(t, 4) == 0) {
        unsigned a, b;
        pick_range(t, r, 64, &a, &b);
        int e = madvise(r->addr + (size_t)a * PAGE, (size_t)(b - a) * PAGE, MADV_DONTNEED) ? errno : 0;
        note(t, OP_SHIFT, r->addr + (size_t)a * PAGE, b - a, NULL, 0, e);
        if (e) broken(t, "MADV_DONTNEED of protected pages", r->addr, e);
        return clear_pages(r, a, b);
    }
    int slot = claim_slot(t);
    if (slot < 0) return;
    unsigned n = below(t, 2) ? r->pages : 1 + below(t, SLOT_PAGES);
    if (!move_to(t, OP_SHIFT, r, n, slot)) return;
    r->p1 = r->pages;
    if (r->prot == PROT_READ) check_region(t, r, "after the move of a read-only mapping");
}
