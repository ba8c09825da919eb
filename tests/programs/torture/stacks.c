// Stacks whose pages leave: deep frames, jumps out of them, signals on alternate stacks, threads that exit while theirs is away.
//
// The main thread sends SIGUSR2 to every thread all the time (see supervise), so that handlers also interrupt
// system calls and faults that wait for a page.
#include "ops.h"
#include <errno.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

enum { FRAME = 20 * WORDS, ALTERNATE_PAGES = 64 };

static _Thread_local Thread *self;
static _Thread_local sigjmp_buf back;
static _Thread_local volatile sig_atomic_t jumps; // the next SIGUSR1 is left by a jump

static void fill_frame(uint64_t *frame, uint64_t tag) {
    for (unsigned i = 0; i < FRAME; i++) frame[i] = page_word(tag, i % WORDS) + i / WORDS;
    __asm__ volatile("" ::"r"(frame) : "memory");
}

static void check_frame(Thread *t, uint64_t *frame, uint64_t tag, const char *what) {
    if (sabotages(t, what)) frame[FRAME / 2] ^= 1;
    __asm__ volatile("" ::"r"(frame) : "memory");
    for (unsigned i = 0; i < FRAME; i++)
        if (frame[i] != page_word(tag, i % WORDS) + i / WORDS) broken(t, what, &frame[i], 0);
}

// Deep stack use: pages that were evicted under a stack that goes down and up again.
void __attribute__((noinline)) do_stack(Thread *t) {
    uint64_t frame[FRAME], tag = rnd(t);
    fill_frame(frame, tag);
    do_fill(t);
    do_verify(t);
    check_frame(t, frame, tag, "stack");
}

static void __attribute__((noinline)) on_alternate_stack(Thread *t, uint64_t tag) {
    uint64_t frame[FRAME];
    fill_frame(frame, tag);
    if (jumps) { // sent by the thread itself between two accesses, so it may work here
        do_fill(t);
        do_verify(t);
    }
    check_frame(t, frame, tag, "signal");
    atomic_fetch_add(&t->signals, 1);
}

static void on_signal(int sig, siginfo_t *info, void *context) {
    (void)info, (void)context;
    int error = errno;
    if (self) on_alternate_stack(self, now_ns());
    errno = error;
    if (sig == SIGUSR1 && jumps == 2) siglongjmp(back, 1);
}

void catch_signals(void) {
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    // One at a time: what a handler does is no more reentrant than the rest.
    sigaddset(&action.sa_mask, SIGUSR1);
    sigaddset(&action.sa_mask, SIGUSR2);
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGUSR2, &action, NULL);
}

// A handler on an alternate stack, which is paged like anything else; it returns or jumps out.
void do_signal(Thread *t) {
    if (!t->alternate) {
        t->alternate = mmap(NULL, (size_t)ALTERNATE_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (t->alternate == MAP_FAILED) broken(t, "mmap", NULL, errno);
    }
    stack_t stack = {.ss_sp = t->alternate, .ss_size = (size_t)ALTERNATE_PAGES * PAGE};
    if (sigaltstack(&stack, NULL)) broken(t, "sigaltstack", t->alternate, errno);
    self = t;
    uint64_t before = atomic_load(&t->signals);
    jumps = 1 + (int)below(t, 2);
    if (!sigsetjmp(back, 1)) raise(SIGUSR1);
    jumps = 0;
    if (atomic_load(&t->signals) == before) broken(t, "a signal that did not arrive", t->alternate, 0);
}

static void __attribute__((noinline)) descend(Thread *t, unsigned depth, sigjmp_buf up) {
    uint64_t frame[FRAME], tag = rnd(t);
    fill_frame(frame, tag);
    if (depth) descend(t, depth - 1, up);
    else if (below(t, 2)) siglongjmp(up, 1);
    check_frame(t, frame, tag, "jump");
}

// Many deep frames, left at once by a jump or one by one.
void __attribute__((noinline)) do_jump(Thread *t) {
    uint64_t frame[FRAME], tag = rnd(t);
    sigjmp_buf up;
    fill_frame(frame, tag);
    if (!sigsetjmp(up, 0)) descend(t, below(t, 12), up);
    check_frame(t, frame, tag, "jump");
}

static void *idle(void *arg) {
    Thread *t = arg;
    uint64_t frame[FRAME], tag = now_ns();
    fill_frame(frame, tag);
    while (sem_wait(&t->leave))
        if (errno != EINTR) broken(t, "sem_wait", &t->leave, errno);
    check_frame(t, frame, tag, "idle");
    return NULL;
}

// A thread that sleeps until its stack has left, verifies it and exits.
void do_idle(Thread *t) {
    if (t->idles && below(t, 4)) return;
    pthread_mutex_lock(&heap_lock);
    if (t->idles) {
        sem_post(&t->leave);
        pthread_join(t->idler, NULL);
    } else {
        sem_init(&t->leave, 0, 0);
        int e = pthread_create(&t->idler, NULL, idle, t);
        if (e) broken(t, "pthread_create", NULL, e);
    }
    t->idles = !t->idles;
    pthread_mutex_unlock(&heap_lock);
}
