// Book-keeping of slots and regions: who has which addresses, and what is expected there.
#include "ops.h"
#include <errno.h>
#include <string.h>

char *slot_address(int slot) { return ARENA + (size_t)slot * SLOT_PAGES * PAGE; }

int claim_slot(Thread *t) {
    for (int n = 0, k = (int)below(t, (unsigned)slot_count); n < slot_count; n++, k = (k + 1) % slot_count) {
        int free = FREE;
        if (atomic_compare_exchange_strong(&slots[k], &free, t->id + 1)) return k;
    }
    return -1;
}

// Announces that the slot is about to be vacated: from now on another thread may claim it.
void leave_slot(Thread *t, int slot) {
    if (slot >= 0) atomic_store(&slots[slot], -(t->id + 1));
}

// The call that vacates it has returned.
void left_slot(Thread *t, int slot) {
    if (slot < 0) return;
    int expected = -(t->id + 1);
    if (!atomic_compare_exchange_strong(&slots[slot], &expected, FREE)) t->stolen++;
}

// Whatever the thread asked of the kernel failed although it had announced to leave: empty the slot after all.
void vacate(Thread *t, Region *r) {
    if (munmap(r->addr, (size_t)r->pages * PAGE)) broken(t, "munmap", r->addr, errno);
    left_slot(t, r->slot);
}

Region *unused(Thread *t) {
    for (unsigned i = 0; i < t->regions; i++)
        if (!t->region[i].addr) return &t->region[i];
    return NULL;
}

// A region without a protection of its own.
Region *pick(Thread *t) {
    for (unsigned n = 0, k = below(t, t->regions); n < t->regions; n++, k = (k + 1) % t->regions)
        if (t->region[k].addr && t->region[k].p0 == t->region[k].p1) return &t->region[k];
    return NULL;
}

void clear_pages(Region *r, unsigned from, unsigned to) { memset(&r->expect[from], 0, (to - from) * sizeof(Expect)); }

unsigned size_for(Thread *t) {
    unsigned n = below(t, 4) ? 1 + below(t, 200) : below(t, 3) ? 1 + below(t, SLOT_PAGES) : SLOT_PAGES;
    unsigned left = t->budget > t->pages ? t->budget - t->pages : 0;
    return n < left ? n : left;
}

void settle(Thread *t, Region *r, char *addr, unsigned pages, int slot) {
    Expect *expect = r->expect;
    *r = (Region){.addr = addr, .pages = pages, .slot = slot, .expect = expect};
    t->pages += pages;
    clear_pages(r, 0, pages);
}

void forget(Thread *t, Region *r) {
    t->pages -= r->pages;
    r->addr = NULL;
    r->p0 = r->p1 = 0;
}

void drop(Thread *t, Region *r, Op op) {
    leave_slot(t, r->slot);
    note(t, op, r->addr, r->pages, NULL, 0, 0);
    if (munmap(r->addr, (size_t)r->pages * PAGE)) broken(t, "munmap", r->addr, errno);
    left_slot(t, r->slot);
    forget(t, r);
}

void pick_range(Thread *t, const Region *r, unsigned most, unsigned *from, unsigned *to) {
    *from = below(t, r->pages);
    unsigned rest = r->pages - *from;
    *to = *from + 1 + below(t, rest < most ? rest : most);
    if (*to > r->pages) *to = r->pages;
}

void fill_some(Thread *t, Region *r) {
    unsigned density = below(t, 4); // leaves holes, so that first touches stay to be done
    for (unsigned i = 0; i < r->pages; i++)
        if (density && below(t, 4) <= density) fill_page(t, r, i);
}

// At most so many pages to copy: from page a of one region, none of them given up, to page b of another, or of the same
// one further on. 0: there are none.
unsigned pick_copy(Thread *t, unsigned most, Region **from, unsigned *a, Region **to, unsigned *b) {
    Region *source = pick(t), *target = pick(t);
    if (!source || !target) return 0;
    unsigned n = 1 + below(t, most);
    if (n > source->pages) n = source->pages;
    if (n > target->pages) n = target->pages;
    *from = source, *to = target;
    *a = below(t, source->pages - n + 1), *b = below(t, target->pages - n + 1);
    if (source == target && *a < *b + n && *b < *a + n) return 0;
    for (unsigned i = 0; i < n; i++)
        if (source->expect[*a + i].freed) fill_page(t, source, *a + i);
    return n;
}
