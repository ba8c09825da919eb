// fork, vfork, posix_spawn and exec: a child must find what its parent had, and neither may see the other's writes.
#include "world.h"
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static void judge(Thread *t, pid_t pid, int status) {
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return;
    report_wrong();
    fprintf(stderr, "torture: WRONG thread %d: child %d %s %d, seed %lu\n", t->id, pid,
            WIFEXITED(status) ? "exited with" : "was killed by signal",
            WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status), (unsigned long)seed_given);
    _exit(1);
}

static int wait_for(Thread *t, pid_t pid, int flags) {
    int status;
    pid_t got = waitpid(pid, &status, flags);
    if (got < 0) broken(t, "waitpid", NULL, errno);
    if (got == pid) judge(t, pid, status);
    return got == pid;
}

void reap(Thread *t, bool wait) {
    for (int i = 0; i < t->kids; i++)
        if (wait_for(t, t->kid[i], wait ? 0 : WNOHANG)) t->kid[i--] = t->kid[--t->kids];
}

// What a child sees of one thread's regions. Wiped ones are zero.
static void verify_inherited(Thread *t) {
    for (unsigned i = 0; i < t->regions; i++) {
        Region *r = &t->region[i];
        if (!r->addr) continue;
        if (r->wipe) memset(r->expect, 0, r->pages * sizeof(Expect));
        check_region(t, r, r->wipe ? "wiped in the child" : "inherited by the child");
    }
}

// Writes of the child's own, which the parent must never see.
static void scribble(Thread *t) {
    for (unsigned i = 0; i < t->regions; i++) {
        Region *r = &t->region[i];
        if (!r->addr || r->p0 != r->p1 || below(t, 3)) continue;
        for (unsigned k = 0; k < 16; k++) fill_page(t, r, below(t, r->pages));
        if (below(t, 4) == 0) {
            if (madvise(r->addr, (size_t)r->pages * PAGE, MADV_DONTNEED)) broken(t, "MADV_DONTNEED", r->addr, errno);
            memset(r->expect, 0, r->pages * sizeof(Expect));
        }
    }
}

// What an orphan must notice and report.
static void spoil(Thread *t) {
    for (unsigned i = 0; i < t->regions; i++) {
        Region *r = &t->region[i];
        if (r->addr && r->p0 == r->p1 && r->expect[0].tag) *(uint64_t *)r->addr ^= 1;
    }
}

static _Noreturn void child(Thread *t, bool everybody) {
    bool orphan = false; // nobody waits for this one: it reports by itself
    for (int depth = 0;; depth++) {
        t->rng ^= (uint64_t)getpid() << 20;
        t->kids = 0;
        int then = (int)below(t, 8);
        if (then == 0) _exit(0); // exits at once, while the pager still learns of it
        if (then == 1) {
            char *args[] = {(char *)self_path, "--exec-check", "7", NULL};
            execv(self_path, args);
            broken(t, "execv", self_path, errno);
        }
        for (int i = 0; i < thread_count; i++)
            if (everybody || i == t->id) verify_inherited(&threads[i]);
        if (then >= 4) scribble(t);
        if (then >= 6 && depth < 2) {
            bool waits = below(t, 4);
            pid_t pid = fork();
            if (pid == 0) {
                orphan = !waits;
                continue; // the grandchild does the same
            }
            if (pid > 0 && waits) wait_for(t, pid, 0);
        }
        if (orphan && sabotages(t, "orphan")) spoil(t);
        for (unsigned i = 0; i < t->regions; i++)
            if (t->region[i].addr) check_region(t, &t->region[i], "in the child, later");
        _exit(0);
    }
}

// Stops the others between two operations, so that the child may verify what they have as well.
static bool pause_others(Thread *t) {
    int nobody = 0;
    if (!atomic_compare_exchange_strong(&pause_request, &nobody, t->id + 1)) return false;
    for (int i = 0; i < thread_count; i++)
        while (i != t->id && atomic_load(&threads[i].in_op)) sched_yield();
    return true;
}

void op_fork(Thread *t) {
    reap(t, false);
    if (t->kids == MAX_KIDS) {
        wait_for(t, t->kid[0], 0);
        t->kid[0] = t->kid[--t->kids];
    }
    bool paused = below(t, 3) == 0 && pause_others(t);
    pid_t pid = fork();
    if (pid == 0) child(t, paused);
    note(t, OP_FORK, NULL, 0, NULL, 0, pid);
    if (paused) atomic_store(&pause_request, 0);
    if (pid < 0) {
        if (errno != EAGAIN && errno != ENOMEM) broken(t, "fork", NULL, errno);
        return;
    }
    t->kid[t->kids++] = pid;
    // Changes right behind a fork are what a table cloned too late gets wrong.
    static const Op after[] = {OP_UNMAP, OP_DONTNEED, OP_FIXED, OP_FILL, OP_MOVE};
    Op next = after[below(t, 5)];
    if (op_on[next]) run_op(t, next);
}

void op_spawn(Thread *t) {
    pid_t pid;
    if (below(t, 2)) {
        char *args[] = {(char *)self_path, "--exec-check", "3", NULL};
        int e = posix_spawn(&pid, self_path, NULL, NULL, args, environ);
        if (e == EAGAIN || e == ENOMEM) return;
        if (e) broken(t, "posix_spawn", self_path, e);
    } else {
        pid = vfork();
        if (pid == 0) {
            execl(self_path, self_path, "--exec-check", "5", (char *)NULL);
            _exit(99);
        }
        if (pid < 0) return;
    }
    wait_for(t, pid, 0);
}

// What an exec'd copy does: a little memory of its own, filled and verified.
int exec_check(uint64_t seed) {
    enum { N = 256 };
    uint64_t *p = mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return 0;
    for (unsigned i = 0; i < N * WORDS; i++) p[i] = mix(seed + i / (1 + seed % 3));
    for (unsigned i = 0; i < N * WORDS; i++)
        if (p[i] != mix(seed + i / (1 + seed % 3))) {
            report_wrong();
            fprintf(stderr, "torture: WRONG pid %d after exec at %p: expected %#lx got %#lx\n", getpid(), (void *)&p[i],
                    (unsigned long)mix(seed + i / (1 + seed % 3)), (unsigned long)p[i]);
            return 1;
        }
    return 0;
}
