// Installs a system call filter for all its threads, which kills the process for any call but a few, while an agent is
// being put into it: neither is in the filter's way.
//
//   entered clone N   N children by the bare system call, each with a second thread that installs the filter as soon as it
//                     sees the first one traced, or another one, as when somebody enters the process
//   entered exec N    N times executes itself and installs the filter first thing
//
// Each verifies memory, now and a little later. Prints "ok" and exits with 0, or says what is wrong and exits with 1.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, PAGES = 2048 };

static atomic_int installed;
static uint64_t buffer[(size_t)PAGES * WORDS];

static void wrong(const char *what) {
    fprintf(stderr, "entered: WRONG %s\n", what);
    _exit(1);
}

static uint64_t word(size_t i, uint64_t salt) {
    uint64_t x = (i + 1) * 0x9e3779b97f4a7c15u ^ salt;
    return (x ^ x >> 29) & 0xffff00ff0000ffffu;
}

static void fill(uint64_t *memory, uint64_t salt) {
    for (size_t i = 0; i < (size_t)PAGES * WORDS; i++) memory[i] = word(i, salt);
}

static void verify(volatile uint64_t *memory, uint64_t salt, const char *when) {
    for (size_t i = 0; i < (size_t)PAGES * WORDS; i++)
        if (memory[i] != word(i, salt)) wrong(when);
}

static uint64_t *take(uint64_t salt) {
    uint64_t *memory = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) wrong("mmap");
    fill(memory, salt);
    return memory;
}

#define ALLOW(nr) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static void install(void) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ALLOW(SYS_write),
        ALLOW(SYS_futex),
        ALLOW(SYS_clock_nanosleep),
        ALLOW(SYS_nanosleep),
        ALLOW(SYS_restart_syscall),
        ALLOW(SYS_exit_group),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) wrong("no_new_privs");
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) != 0) wrong("seccomp");
}

static void nap(long milliseconds) {
    nanosleep(&(struct timespec){milliseconds / 1000, milliseconds % 1000 * 1000000}, NULL);
}

// Whether somebody traces the first thread, whose status this is, or is in the process beside us two.
static int entered(int status) {
    char text[4096];
    ssize_t length = pread(status, text, sizeof text - 1, 0);
    if (length < 0) wrong("/proc/self/status");
    text[length] = 0;
    const char *tracer = strstr(text, "TracerPid:"), *threads = strstr(text, "Threads:");
    if (!tracer || !threads) wrong("/proc/self/status");
    return atoi(tracer + strlen("TracerPid:")) != 0 || atoi(threads + strlen("Threads:")) > 2;
}

static void *install_late(void *status) {
    time_t end = time(NULL) + 20;
    while (!entered((int)(intptr_t)status) && time(NULL) < end) sched_yield();
    install();
    installed = 1;
    for (;;) nap(1000);
    return NULL;
}

// A process of its own, which has its parent's memory and no agent.
static void child(uint64_t *memory) {
    char own[64];
    pthread_t thread;
    snprintf(own, sizeof own, "/proc/%d/status", (int)syscall(SYS_getpid));
    int status = open(own, O_RDONLY);
    if (status < 0 || pthread_create(&thread, NULL, install_late, (void *)(intptr_t)status) != 0) wrong("a thread");
    while (!installed) nap(1);
    verify(memory, 1, "inherited behind a filter");
    fill(memory, 2);
    nap(100);
    verify(memory, 2, "behind a filter");
    _exit(0);
}

static void expect(pid_t pid, const char *what) {
    int status;
    if (pid < 0 || waitpid(pid, &status, 0) != pid) wrong("fork");
    if (status == 0) return;
    fprintf(stderr, "entered: WRONG %s ended with status %#x\n", what, status);
    _exit(1);
}

int main(int argc, char **argv) {
    if (argc == 2) {
        install();
        fill(buffer, 3);
        nap(100);
        verify(buffer, 3, "of what was executed, behind a filter");
        _exit(0);
    }
    if (argc != 3) return 2;
    int clones = strcmp(argv[1], "clone") == 0;
    uint64_t *memory = take(1);
    for (int i = 0; i < atoi(argv[2]); i++) {
        pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
        if (pid == 0) {
            if (clones) child(memory);
            execl("/proc/self/exe", argv[0], "once", (char *)NULL);
            wrong("exec");
        }
        expect(pid, clones ? "a child" : "what was executed");
    }
    verify(memory, 1, "at the end");
    puts("ok");
    return 0;
}
