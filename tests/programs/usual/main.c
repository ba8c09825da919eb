// What programs do beside mapping and touching memory, on memory that a pager has taken: system calls that hand it to
// the kernel in other ways, and those that change what a process may do or what it shares.
//
//     usual [-x] MIB CHECK...
//
// MIB is how much other memory is gone over before each step. Prints "CHECK ok" for each; the exit status is 1 at the
// first wrong byte, 2 if a call fails. -x damages memory before each verification, to show that it bites.
#include "usual.h"
#include <fcntl.h>
#include <limits.h>

size_t ballast_pages;
bool damages;
const char *self_path;

static const struct {
	const char *name;
	void (*check)(void);
} checks[] = {
	{"uring", check_uring},       {"direct", check_direct},           {"vmsplice", check_vmsplice},
	{"remote", check_remote},     {"memfd", check_memfd},             {"shm", check_shm},
	{"prctl", check_prctl},       {"userfaultfd", check_userfaultfd}, {"locked", check_locked},
	{"droppable", check_droppable}, {"chroot", check_chroot},         {"deepfork", check_deepfork},
	{"descriptors", check_descriptors}, {"filter", check_filter},
	{"killed-pread64", check_killed_pread64}, {"killed-sendto", check_killed_sendto},
	{"all-kill-process", check_all_kill_process}, {"all-kill-thread", check_all_kill_thread},
	{"all-trap", check_all_trap}, {"all-errno", check_all_errno}, {"all-by-int80", check_all_by_int80},
	{"own-kill-process", check_own_kill_process},
};

void fail(const char *what)
{
	fprintf(stderr, "usual: %s: %s\n", what, strerror(errno));
	exit(2);
}

void expect_child(pid_t pid, int want, const char *what)
{
	int status;
	if (pid < 0)
		fail(what);
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			fail("waitpid");
	if (status != want) {
		fprintf(stderr, "usual: WRONG %s: a child ended with status %#x\n", what, status);
		exit(1);
	}
}

// A file without a name; flags as for open(2).
int file_in_temporary(int flags)
{
	char name[PATH_MAX];
	const char *dir = getenv("TMPDIR");
	snprintf(name, sizeof name, "%s/usual.XXXXXX", dir && *dir ? dir : "/tmp");
	int file = mkostemp(name, O_CLOEXEC | flags);
	if (file < 0 || unlink(name) != 0)
		fail(name);
	return file;
}

int main(int argc, char **argv)
{
	static char self[PATH_MAX];
	int next = 1;
	if (argc == 2 && strcmp(argv[1], "--exec-check") == 0) {
		verify(take(9), 9, "after exec");
		return 0;
	}
	if (next < argc && strcmp(argv[next], "-x") == 0)
		damages = ++next;
	if (next >= argc || !realpath("/proc/self/exe", self))
		return 2;
	self_path = self;
	ballast_pages = strtoull(argv[next++], NULL, 10) * 256;
	for (; next < argc; next++) {
		size_t i = 0;
		while (i < sizeof checks / sizeof *checks && strcmp(checks[i].name, argv[next]) != 0)
			i++;
		if (i == sizeof checks / sizeof *checks) {
			fprintf(stderr, "usual: no check %s\n", argv[next]);
			return 2;
		}
		checks[i].check();
		printf("%s ok\n", checks[i].name);
		fflush(stdout);
	}
	return 0;
}
