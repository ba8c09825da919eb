// Every way to copy an address space, most of them past the C library: each child verifies all of its memory.
//
//     copies MIB WAY...
//
// fork     fork(3), by four threads at once while the others write
// raw      the system call fork, by nobody's hook
// clone    the system call clone, likewise
// clone3   the same with a structure; where it does not exist, clone
// int80    the i386 entry, where the kernel has it
// vfork    a child that shares our memory makes a grandchild that does not
// spin     clone, and a parent that never sleeps afterwards while it goes over its memory
//
// Prints what depends on the arguments alone; the exit status is 1 at the first wrong byte.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, THREADS = 4 };

static uint64_t *memory;
static size_t pages;
static uint64_t generation;

static uint64_t word(uint64_t page, uint64_t index)
{
	uint64_t x = (page * 0x9e3779b97f4a7c15u) ^ (generation << 32) ^ (index / 4 * 0xbf58476d1ce4e5b9u);
	return x ^ (x >> 29);
}

static void fill(size_t first, size_t end)
{
	for (size_t p = first; p < end; p++)
		for (size_t i = 0; i < WORDS; i++)
			memory[p * WORDS + i] = word(p, i);
}

// Without the C library: also for children that it does not know.
static int verify(size_t first, size_t end)
{
	for (size_t p = first; p < end; p++)
		for (size_t i = 0; i < WORDS; i++)
			if (memory[p * WORDS + i] != word(p, i))
				return 1;
	return 0;
}

static void die(const char *what)
{
	fprintf(stderr, "copies: %s: %s\n", what, strerror(errno));
	exit(2);
}

// The end of a child, whoever made it.
static void judge(const char *way, long pid)
{
	int status;
	if (pid < 0) {
		errno = (int)-pid;
		die(way);
	}
	while (waitpid((pid_t)pid, &status, __WALL) < 0)
		if (errno != EINTR)
			die("waitpid");
	if (status != 0) {
		fprintf(stderr, "copies: WRONG %s: child %ld ended with status %#x\n", way, pid, status);
		exit(1);
	}
}

static long made(long answer)
{
	return answer < 0 ? -errno : answer;
}

// The frame of a child that shares or copies our stack must not be returned into: the calls stay in these macros.
#define CHILD_VERIFIES() syscall(SYS_exit_group, verify(0, pages))

static void by_raw(void)
{
	long pid = made(syscall(SYS_fork));
	if (pid == 0)
		CHILD_VERIFIES();
	judge("raw", pid);
}

static void by_clone(void)
{
	long pid = made(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
	if (pid == 0)
		CHILD_VERIFIES();
	judge("clone", pid);
}

static void by_clone3(void)
{
	struct { uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls; } args = {0};
	args.exit_signal = SIGCHLD;
	long pid = made(syscall(SYS_clone3, &args, sizeof args));
	if (pid == 0)
		CHILD_VERIFIES();
	if (pid == -ENOSYS) {
		by_clone();
		return;
	}
	judge("clone3", pid);
}

static sigjmp_buf no_entry;

static void without_entry(int signal)
{
	(void)signal;
	siglongjmp(no_entry, 1);
}

static void by_int80(void)
{
	struct sigaction act = {.sa_handler = without_entry}, before;
	sigaction(SIGSEGV, &act, &before);
	if (sigsetjmp(no_entry, 1) == 0) {
		long pid;
		__asm__ volatile("int $0x80" : "=a"(pid) : "a"(2L) : "memory", "r8", "r9", "r10", "r11");
		if (pid == 0)
			CHILD_VERIFIES();
		judge("int80", (int)pid);
	}
	sigaction(SIGSEGV, &before, NULL);
}

static void by_vfork(void)
{
	pid_t pid = vfork();
	if (pid == 0) {
		int status = 0;
		long grandchild = syscall(SYS_fork);
		if (grandchild == 0)
			CHILD_VERIFIES();
		if (grandchild < 0 || syscall(SYS_wait4, grandchild, &status, 0, 0) != grandchild)
			status = 2;
		syscall(SYS_exit, status == 0 ? 0 : 1);
	}
	judge("vfork", pid < 0 ? -errno : pid);
}

static void by_spin(void)
{
	atomic_int *done = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (done == MAP_FAILED)
		die("mmap");
	long pid = made(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
	if (pid == 0) {
		int wrong = verify(0, pages);
		*done = 1;
		syscall(SYS_exit_group, wrong);
	}
	int wrong = 0;
	do
		wrong |= verify(0, pages);
	while (pid > 0 && !*done && !wrong);
	if (wrong) {
		fprintf(stderr, "copies: WRONG spin: the parent's own memory\n");
		exit(1);
	}
	judge("spin", pid);
	munmap(done, PAGE);
}

static void *forker(void *argument)
{
	size_t part = (size_t)argument, first = pages / THREADS * part, end = pages / THREADS * (part + 1);
	for (int round = 0; round < 3; round++) {
		fill(first, end);
		pid_t pid = fork();
		if (pid == 0)
			_exit(verify(first, end)); // the others' parts are being written
		judge("fork", pid < 0 ? -errno : pid);
		if (verify(first, end)) {
			fprintf(stderr, "copies: WRONG fork: the parent's own memory\n");
			exit(1);
		}
	}
	return NULL;
}

static void by_fork(void)
{
	pthread_t threads[THREADS];
	for (size_t i = 0; i < THREADS; i++)
		if ((errno = pthread_create(&threads[i], NULL, forker, (void *)i)) != 0)
			die("pthread_create");
	for (size_t i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
}

int main(int argc, char **argv)
{
	static const struct { const char *name; void (*way)(void); } ways[] = {
		{"fork", by_fork}, {"raw", by_raw}, {"clone", by_clone}, {"clone3", by_clone3},
		{"int80", by_int80}, {"vfork", by_vfork}, {"spin", by_spin},
	};
	pages = argc > 1 ? strtoul(argv[1], NULL, 10) * 1024 * 1024 / PAGE : 0;
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		die("mmap");
	for (int a = 2; a < argc; a++) {
		size_t w = 0, count = sizeof ways / sizeof *ways;
		while (w < count && strcmp(ways[w].name, argv[a]) != 0)
			w++;
		if (w == count) {
			fprintf(stderr, "copies: no way %s\n", argv[a]);
			return 2;
		}
		generation++;
		fill(0, pages);
		ways[w].way();
		if (verify(0, pages)) {
			fprintf(stderr, "copies: WRONG after %s: the parent's own memory\n", argv[a]);
			return 1;
		}
		printf("copies: %s ok\n", argv[a]);
		fflush(stdout);
	}
	return 0;
}
