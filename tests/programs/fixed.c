// A program to be linked statically: fills memory with a pattern, verifies it, and does what is asked for on the way.
//
// usage: fixed MIB [word ...]; each word is one thing to do while memory is filled:
//   fork    two children, one after the other, verify what they inherited, then fill and verify as much of their own,
//           and fork a grandchild that verifies it
//   raw     as fork, by the bare system call: no fork hook of any C library runs
//   exec    executes itself, with the words after it (memory is verified first)
//   rest    sleeps for a second
//   wait    a child, made by the bare system call, waits for a second in epoll_wait, which must not be interrupted, and then
//           fills and verifies memory of its own
//   strict  a child, made by the bare system call, may only read and write for a second, on pain of death (seccomp's strict mode)
//   alone   enters a user namespace, for which it must be the only thread
// Prints "ok" and exits with 0, or says what is wrong and exits with 1.
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

// SECCOMP_MODE_STRICT; musl comes without the header.
#define STRICT 1

static size_t mib;

static void wrong(const char *what) {
    fprintf(stderr, "fixed: %s (errno %d)\n", what, errno);
    _exit(1);
}

static uint64_t word(size_t at, uint64_t seed) {
    uint64_t x = (at + 1) * 0x9e3779b97f4a7c15u ^ seed;
    return (x ^ x >> 29) & 0xffff00ff0000ffffu;
}

static uint64_t *fill(uint64_t seed) {
    size_t words = (mib << 20) / 8;
    uint64_t *memory = mmap(0, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        wrong("mmap");
    for (size_t at = 0; at < words; at++)
        memory[at] = word(at, seed);
    return memory;
}

static void verify(const uint64_t *memory, uint64_t seed) {
    for (size_t at = 0; at < (mib << 20) / 8; at++)
        if (memory[at] != word(at, seed))
            wrong("memory is not what was written");
}

static void reap(pid_t child) {
    int status;
    if (child < 0)
        wrong("fork");
    if (waitpid(child, &status, 0) != child || status != 0)
        wrong("a child failed");
}

static pid_t make(int raw) {
    return raw ? syscall(SYS_fork) : fork();
}

static void children(const uint64_t *memory, int raw) {
    for (uint64_t number = 1; number <= 2; number++) {
        pid_t child = make(raw);
        if (child == 0) {
            verify(memory, 0);
            uint64_t *own = fill(number);
            pid_t grandchild = make(raw);
            if (grandchild == 0) {
                verify(own, number);
                _exit(0);
            }
            reap(grandchild);
            verify(own, number);
            verify(memory, 0);
            _exit(0);
        }
        reap(child);
    }
}

static void wait_for_nothing(void) {
    struct epoll_event event;
    int set = epoll_create1(EPOLL_CLOEXEC);
    if (set < 0 || epoll_wait(set, &event, 1, 1000) != 0)
        wrong("epoll_wait");
    close(set);
}

static void waiting_child(void) {
    pid_t child = make(1);
    if (child == 0) {
        wait_for_nothing();
        uint64_t *own = fill(1);
        sleep(2); // for the agent to come
        verify(own, 1);
        _exit(0);
    }
    reap(child);
}

static void strict_child(void) {
    int end[2];
    char byte;
    if (pipe(end))
        wrong("pipe");
    pid_t child = make(1);
    if (child == 0) {
        close(end[1]);
        if (prctl(PR_SET_SECCOMP, STRICT))
            wrong("strict mode");
        syscall(SYS_exit, read(end[0], &byte, 1) != 0);
    }
    close(end[0]);
    sleep(1); // for the agent to come
    close(end[1]);
    reap(child);
}

int main(int argc, char **argv) {
    if (argc < 2 || (mib = strtoul(argv[1], 0, 10)) == 0)
        wrong("usage");
    uint64_t *memory = fill(0);
    for (int at = 2; at < argc; at++) {
        if (!strcmp(argv[at], "fork") || !strcmp(argv[at], "raw"))
            children(memory, argv[at][0] == 'r');
        else if (!strcmp(argv[at], "rest"))
            sleep(1);
        else if (!strcmp(argv[at], "wait"))
            waiting_child();
        else if (!strcmp(argv[at], "strict"))
            strict_child();
        else if (!strcmp(argv[at], "alone")) {
            if (unshare(CLONE_NEWUSER))
                wrong("unshare");
        } else if (!strcmp(argv[at], "exec")) {
            verify(memory, 0);
            argv[at] = argv[1];
            argv[at - 1] = argv[0];
            execv("/proc/self/exe", argv + at - 1);
            wrong("exec");
        } else
            wrong("usage");
    }
    verify(memory, 0);
    puts("ok");
    return 0;
}
