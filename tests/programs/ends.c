// A program that does not end as programs do, by exit_group.
//
// usage: ends HOW MIB
//   exit   its only thread ends by the bare system call exit, with 7
//   leave  its first thread ends so, with 7, once a second one runs; that fills MIB of memory, rests, verifies, and ends so with 9
//   join   its first thread ends by pthread_exit; the second does the same work and returns
// Prints "ok" before its last thread ends.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static size_t mib;
static pthread_t first;

static void end_thread(int code) {
    syscall(SYS_exit, code);
    _exit(99);
}

static void say_ok(void) {
    if (write(1, "ok\n", 3) != 3)
        _exit(98);
}

static void work(void) {
    size_t words = (mib << 20) / 8;
    uint64_t *memory = mmap(0, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        _exit(97);
    for (size_t at = 0; at < words; at++)
        memory[at] = at * 0x9e3779b97f4a7c15u;
    sleep(1);
    for (size_t at = 0; at < words; at++)
        if (memory[at] != at * 0x9e3779b97f4a7c15u)
            _exit(96);
    say_ok();
}

static void *second(void *how) {
    if (!strcmp(how, "join")) {
        pthread_join(first, 0);
        work();
        return 0;
    }
    usleep(50000); // for the first thread to end
    work();
    end_thread(9);
    return 0;
}

int main(int argc, char **argv) {
    pthread_t thread;
    if (argc != 3)
        return 95;
    mib = strtoul(argv[2], 0, 10);
    if (!strcmp(argv[1], "exit")) {
        say_ok();
        end_thread(7);
    }
    first = pthread_self();
    if (pthread_create(&thread, 0, second, argv[1]))
        return 94;
    if (!strcmp(argv[1], "leave"))
        end_thread(7);
    pthread_exit(0);
}
