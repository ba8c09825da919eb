// What the operations share. Their names are in world.h's table.
#pragma once
#include "world.h"

char *slot_address(int slot);
int claim_slot(Thread *t);
void leave_slot(Thread *t, int slot);
void left_slot(Thread *t, int slot);
void vacate(Thread *t, Region *r);
Region *unused(Thread *t);
Region *pick(Thread *t);
void clear_pages(Region *r, unsigned from, unsigned to);
unsigned size_for(Thread *t);
void settle(Thread *t, Region *r, char *addr, unsigned pages, int slot);
void forget(Thread *t, Region *r);
void drop(Thread *t, Region *r, Op op);
void pick_range(Thread *t, const Region *r, unsigned most, unsigned *from, unsigned *to);
unsigned pick_copy(Thread *t, unsigned most, Region **from, unsigned *a, Region **to, unsigned *b);
void fill_some(Thread *t, Region *r);

void do_fill(Thread *t);
void do_touch(Thread *t);
void do_verify(Thread *t);
void do_peek(Thread *t);
void do_map(Thread *t);
void do_unmap(Thread *t);
void do_tail(Thread *t);
void do_fixed(Thread *t);
void do_dontneed(Thread *t);
void do_free(Thread *t);
void do_grow(Thread *t);
void do_shrink(Thread *t);
void do_move(Thread *t);
void do_onto(Thread *t);
void do_dontunmap(Thread *t);
void do_steal(Thread *t);
void do_protect(Thread *t);
void do_pipe(Thread *t);
void do_brk(Thread *t);
void do_guard(Thread *t);
void do_mlock(Thread *t);
void do_wipe(Thread *t);
void do_huge(Thread *t);
void do_stack(Thread *t);
void do_file(Thread *t);
void do_signal(Thread *t);
void do_jump(Thread *t);
void do_idle(Thread *t);
void do_shift(Thread *t);
