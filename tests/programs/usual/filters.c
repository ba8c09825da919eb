// Programs with a system call filter of their own, which ends whoever makes a call that it does not expect.
#include "usual.h"
#include <dirent.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <time.h>

#define NR BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))
#define ALLOW(nr) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define ELSE(what) BPF_STMT(BPF_RET | BPF_K, what)
#define INSTALL(filter, flags) install(filter, sizeof filter / sizeof *(filter), flags)

// Whether filters are installed by the i386 entry, for which pointers have 32 bits.
static bool by_int80;

static long int80(long number, long a, long b, void *c)
{
	long answer;
	__asm__ volatile("int $0x80"
			 : "=a"(answer)
			 : "a"(number), "b"(a), "c"(b), "d"(c)
			 : "memory", "r8", "r9", "r10", "r11");
	return answer;
}

static void install_by_int80(struct sock_filter *filter, size_t length, unsigned flags)
{
	struct {
		uint16_t length;
		uint32_t filter;
		struct sock_filter copy[];
	} *program = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	if (program == MAP_FAILED)
		fail("mmap");
	program->length = (uint16_t)length;
	program->filter = (uint32_t)(uintptr_t)program->copy;
	memcpy(program->copy, filter, length * sizeof *filter);
	press_only();
	enum { SECCOMP_I386 = 354 };
	errno = -(int)int80(SECCOMP_I386, SECCOMP_SET_MODE_FILTER, flags, program);
	if (errno != 0)
		fail("the i386 seccomp");
}

static void install(struct sock_filter *filter, size_t length, unsigned flags)
{
	struct sock_fprog program = {(unsigned short)length, filter};
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
		fail("no_new_privs");
	if (by_int80)
		return install_by_int80(filter, length, flags);
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program) != 0)
		fail("seccomp");
}

// What the C library of a program that works on its memory needs, and no more.
#define WORKS                                                                                                          \
	NR, ALLOW(SYS_read), ALLOW(SYS_write), ALLOW(SYS_mmap), ALLOW(SYS_munmap), ALLOW(SYS_madvise), ALLOW(SYS_brk),   \
		ALLOW(SYS_mremap), ALLOW(SYS_exit_group), ALLOW(SYS_exit), ALLOW(SYS_futex), ALLOW(SYS_openat),          \
		ALLOW(SYS_close), ALLOW(SYS_pread64), ALLOW(SYS_rt_sigprocmask), ALLOW(SYS_fstat), ALLOW(SYS_newfstatat), \
		ALLOW(SYS_getpid)
static void work(uint64_t salt, const char *when)
{
	uint64_t *memory = take(salt);
	press(when, memory);
	memory = mremap(memory, (size_t)PAGES * PAGE, (size_t)2 * PAGES * PAGE, MREMAP_MAYMOVE);
	if (memory == MAP_FAILED)
		fail("mremap");
	verify(memory, salt, when);
	fill(memory + (size_t)PAGES * WORDS, salt + 1);
	press_only();
	verify(memory + (size_t)PAGES * WORDS, salt + 1, when);
}

// Of the calling thread alone: whatever other threads do is not its business.
void check_filter(void)
{
	uint64_t *memory = take(71);
	press("filter", memory);
	pid_t child = fork();
	if (child == 0) {
		struct sock_filter filter[] = {WORKS, ELSE(SECCOMP_RET_KILL_PROCESS)};
		INSTALL(filter, 0);
		verify(memory, 71, "inherited, behind a filter");
		work(72, "behind a filter");
		_exit(0);
	}
	expect_child(child, 0, "a child with a filter");
	// The filter bites.
	child = fork();
	if (child == 0) {
		struct sock_filter filter[] = {WORKS, ELSE(SECCOMP_RET_KILL_PROCESS)};
		INSTALL(filter, 0);
		syscall(SYS_getuid);
		_exit(0);
	}
	int status;
	if (waitpid(child, &status, 0) != child || !WIFSIGNALED(status) || WTERMSIG(status) != 31 /* SIGSYS */) {
		fprintf(stderr, "usual: WRONG a filter that does not bite: %#x\n", status);
		exit(1);
	}
	verify(memory, 71, "without the filter");
}

static int threads(void)
{
	DIR *tasks = opendir("/proc/self/task");
	if (!tasks)
		fail("/proc/self/task");
	int count = 0;
	for (struct dirent *entry; (entry = readdir(tasks));)
		count += entry->d_name[0] != '.';
	closedir(tasks);
	return count;
}

// All threads at once, those included that the program does not know; whoever makes the call is ended, alone.
static void killed(int call)
{
	struct sock_filter filter[] = {NR, BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
				       ELSE(SECCOMP_RET_KILL_THREAD), ELSE(SECCOMP_RET_ALLOW)};
	uint64_t *memory = take(81);
	press("killed", memory);
	fill(memory, 82);
	INSTALL(filter, SECCOMP_FILTER_FLAG_TSYNC);
	// Until the one that makes it is gone: it does so the next time that pages leave.
	time_t end = time(NULL) + 60;
	while (threads() > 1 && time(NULL) < end)
		press_only();
	verify(memory, 82, "after the end of a thread");
	press_only();
}

void check_killed_pread64(void) { killed(SYS_pread64); }

void check_killed_sendto(void) { killed(SYS_sendto); }

// What forking and executing a program takes beside that.
#define LIVES                                                                                                          \
	WORKS, ALLOW(SYS_clone), ALLOW(SYS_clone3), ALLOW(SYS_wait4), ALLOW(SYS_set_robust_list), ALLOW(SYS_rseq),       \
		ALLOW(SYS_gettid), ALLOW(SYS_execve), ALLOW(SYS_arch_prctl), ALLOW(SYS_set_tid_address),                 \
		ALLOW(SYS_mprotect), ALLOW(SYS_prlimit64), ALLOW(SYS_getrandom), ALLOW(SYS_access), ALLOW(SYS_faccessat2), \
		ALLOW(SYS_readlink), ALLOW(SYS_readlinkat), ALLOW(SYS_stat), ALLOW(SYS_lstat)

static atomic_bool over;

static void *go_over(void *nothing)
{
	uint64_t *memory = take(93);
	for (uint64_t round = 0; !over; round++) {
		verify(memory, 93 + round, "in another thread");
		fill(memory, 94 + round);
	}
	return nothing;
}

// A filter that lets nothing pass which the program does not do; what else makes calls meets with `action`.
static void live(const char *name, unsigned action, unsigned flags)
{
	struct sock_filter filter[] = {LIVES, ELSE(action)};
	pthread_t thread;
	uint64_t *memory = take(91);
	if (pthread_create(&thread, NULL, go_over, NULL) != 0)
		fail("pthread_create");
	press(name, memory);
	INSTALL(filter, flags);
	verify(memory, 91, "behind a filter");
	fill(memory, 92);
	press_only();
	pid_t child = fork();
	if (child == 0) {
		verify(memory, 92, "inherited behind a filter");
		fill(memory, 95);
		press_only();
		verify(memory, 95, "of a child behind a filter");
		_exit(0);
	}
	expect_child(child, 0, "a child behind a filter");
	child = fork();
	if (child == 0) {
		execl(self_path, self_path, "--exec-check", (char *)NULL);
		fail("exec");
	}
	expect_child(child, 0, "a program that was executed behind a filter");
	verify(memory, 92, "behind a filter, later");
	over = true;
	pthread_join(thread, NULL);
}

void check_all_kill_process(void) { live("all-kill-process", SECCOMP_RET_KILL_PROCESS, SECCOMP_FILTER_FLAG_TSYNC); }

void check_all_kill_thread(void) { live("all-kill-thread", SECCOMP_RET_KILL_THREAD, SECCOMP_FILTER_FLAG_TSYNC); }

void check_all_trap(void) { live("all-trap", SECCOMP_RET_TRAP, SECCOMP_FILTER_FLAG_TSYNC); }

void check_all_errno(void) { live("all-errno", SECCOMP_RET_ERRNO | EPERM, SECCOMP_FILTER_FLAG_TSYNC); }

void check_all_by_int80(void)
{
	by_int80 = true;
	live("all-by-int80", SECCOMP_RET_KILL_PROCESS, SECCOMP_FILTER_FLAG_TSYNC);
}

void check_own_kill_process(void) { live("own-kill-process", SECCOMP_RET_KILL_PROCESS, 0); }
