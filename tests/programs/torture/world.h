// The threads, their regions, and the arena of addresses that they hand to each other.
//
// Every region belongs to one thread, which alone reads and writes it: the program is free of data races,
// so whatever is wrong was made wrong from outside. What is shared on purpose is addresses. The arena is a
// row of slots; who may map a slot is decided by its word, not by the kernel:
//   FREE     nobody's, unmapped
//   n > 0    thread n-1's
//   n < 0    its owner -n-1 is inside the munmap or mremap that vacates it; another thread may claim it and
//            map there the moment the kernel allows it, while the first call still waits for its event
#pragma once
#define _GNU_SOURCE
#include "page.h"
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/types.h>

enum { SLOT_PAGES = 512, MAX_THREADS = 64, MAX_KIDS = 3, HISTORY = 256, HEAP_PAGES = 256, FREE = 0 };
// A protection beside those of mprotect: MADV_GUARD_INSTALL.
enum { PROT_GUARD = -1 };
// Where every descendant reports what is wrong, also one whose parent has died.
enum { REPORT_FD = 200 };
#define ARENA ((char *)0x100000000000)

// Operation classes; each can be switched off by name.
#define OPS(X)                                                                                              \
    X(FILL, fill, 20) X(TOUCH, touch, 20) X(VERIFY, verify, 20) X(PEEK, peek, 20) X(MAP, map, 14)           \
    X(UNMAP, unmap, 8) X(TAIL, tail, 2) X(FIXED, fixed, 5) X(DONTNEED, dontneed, 8) X(MFREE, free, 6)       \
    X(GROW, grow, 6) X(SHRINK, shrink, 4) X(MOVE, move, 10) X(ONTO, onto, 3) X(DONTUNMAP, dontunmap, 3)     \
    X(STEAL, steal, 12) X(PROTECT, protect, 6) X(PIPE, pipe, 8) X(FORK, fork, 1) X(SPAWN, spawn, 1)         \
    X(BRK, brk, 4) X(GUARD, guard, 2) X(MLOCK, mlock, 1) X(WIPE, wipe, 1) X(HUGE, huge, 1) X(STACK, stack, 2)     \
    X(FILE, file, 6) X(SIGNAL, signal, 3) X(JUMP, jump, 2) X(IDLE, idle, 2) X(SHIFT, shift, 4)
#define X(id, name, weight) OP_##id,
typedef enum { OPS(X) OP_COUNT } Op;
#undef X
extern const char *const op_names[OP_COUNT];
extern bool op_on[OP_COUNT];

typedef struct {
    char *addr; // NULL: this entry is unused
    unsigned pages;
    int slot;   // of the arena, or -1: the kernel chose the address
    bool mixed; // part of it was remapped or protected: a pager may have split it, so mremap may say EFAULT
    bool wipe;  // MADV_WIPEONFORK
    unsigned p0, p1; // pages [p0, p1) have protection prot until operation number until
    int prot;
    uint64_t until;
    Expect *expect; // SLOT_PAGES of them
} Region;

typedef struct {
    uint64_t at, from, to;
    uint32_t from_pages, to_pages;
    int op, result;
} Event;

typedef struct Thread {
    int id;
    uint64_t rng, serial, ops;
    unsigned regions, pages, budget;
    Region *region;
    int kids, kid[MAX_KIDS];
    int pipe[2], file[2];
    char *alternate;
    _Atomic uint64_t signals;
    pthread_t idler;
    sem_t leave;
    bool idles;
    uint64_t counts[OP_COUNT];
    uint64_t verified, refused, lost, stolen;
    Event history[HISTORY];
    uint64_t events;
    _Atomic uint64_t *progress; // shared with its children: where memory is short they need long, but must get on
    _Atomic int op_now;
    _Atomic int in_op, running, finished;
} Thread;

extern Thread threads[MAX_THREADS];
extern int thread_count;
extern _Atomic int *slots;
extern int slot_count;
extern _Atomic int pause_request;
extern _Atomic bool stop;
extern const char *self_path;
extern uint64_t seed_given;
extern pthread_mutex_t heap_lock; // held around sbrk and around whatever of the main thread calls malloc

uint64_t now_ns(void);

static inline uint64_t rnd(Thread *t) { return mix(t->rng += 0x9e3779b97f4a7c15u); }
static inline unsigned below(Thread *t, unsigned n) { return n ? (unsigned)(rnd(t) % n) : 0; }

// Says what is wrong where, with the operations that touched the address, and ends the process with 1.
_Noreturn void wrong(Thread *t, const Region *r, unsigned page, unsigned word, const char *when);
_Noreturn void broken(Thread *t, const char *what, const void *addr, int error);
// Says that something is wrong to whoever waits for all descendants; async-signal-safe.
void report_wrong(void);
// Whether the operation of this name shall damage what it is about to check.
bool sabotages(Thread *t, const char *what);
void print_fault(int sig, void *addr, int code);
void note(Thread *t, Op op, const void *from, unsigned from_pages, const void *to, unsigned to_pages, int result);

void check_page(Thread *t, Region *r, unsigned page, const char *when);
void check_region(Thread *t, Region *r, const char *when);
void fill_page(Thread *t, Region *r, unsigned page);

void run_op(Thread *t, Op op);
void expire_protections(Thread *t, bool all);
void op_fork(Thread *t);
void op_spawn(Thread *t);
void reap(Thread *t, bool wait);
int exec_check(uint64_t seed);
void catch_faults(void);
void catch_signals(void);
