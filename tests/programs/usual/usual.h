// What the checks share: memory with known contents, and pressure that makes it leave.
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, PAGES = 1024 };

// PAGES pages of private memory, filled from a salt.
uint64_t *take(uint64_t salt);
void fill(uint64_t *memory, uint64_t salt);
// Ends the process with 1 and says where, unless the pages hold what fill wrote.
void verify(uint64_t *memory, uint64_t salt, const char *when);
// Goes over so much other memory that a pager takes these pages, and says on stderr how many are away.
void press(const char *check, const void *memory);
// The same where nothing has to leave.
void press_only(void);

_Noreturn void fail(const char *what);
// The end of a child, which must be exit status `want`.
void expect_child(pid_t pid, int want, const char *what);

extern const char *self_path;
int file_in_temporary(int flags);

void check_uring(void);
void check_direct(void);
void check_vmsplice(void);
void check_remote(void);
void check_memfd(void);
void check_shm(void);
void check_descriptors(void);
void check_prctl(void);
void check_chroot(void);
void check_deepfork(void);
void check_filter(void);
void check_killed_pread64(void);
void check_killed_sendto(void);
void check_all_kill_process(void);
void check_all_kill_thread(void);
void check_all_trap(void);
void check_all_errno(void);
void check_all_by_int80(void);
void check_own_kill_process(void);
void check_userfaultfd(void);
void check_locked(void);
void check_droppable(void);
