// What a process may change about itself: its descriptors, its names, its root, its limits.
#include "usual.h"
#include <dirent.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <pthread.h>
#include <sys/prctl.h>

// The numbers of the open descriptors, as text.
static void list(char *text, size_t size)
{
	DIR *dir = opendir("/proc/self/fd");
	if (!dir)
		fail("/proc/self/fd");
	*text = 0;
	for (struct dirent *entry; (entry = readdir(dir));)
		if (*entry->d_name != '.' && atoi(entry->d_name) != dirfd(dir))
			snprintf(text + strlen(text), size - strlen(text), " %s", entry->d_name);
	closedir(dir);
}

void check_descriptors(void)
{
	char open_now[1024];
	uint64_t *memory = take(131);
	press("descriptors", memory);
	// None but those that a shell gives, and its own lowest number is free.
	int lowest = open("/dev/null", O_RDONLY);
	close_range(3, ~0u, 0);
	list(open_now, sizeof open_now);
	if (strcmp(open_now, " 0 1 2") != 0 || lowest > 9) {
		fprintf(stderr, "usual: WRONG descriptors%s, lowest %d\n", open_now, lowest);
		exit(1);
	}
	verify(memory, 131, "after close_range");
	press("descriptors closed", memory);
	closefrom(3);
	verify(memory, 131, "after closefrom");
	pid_t child = fork();
	if (child == 0) {
		close_range(3, ~0u, CLOSE_RANGE_UNSHARE);
		verify(memory, 131, "in a child without descriptors");
		fill(memory, 132);
		press("a child without descriptors", memory);
		// As a server does that starts a program: all descriptors that there might be.
		for (int i = 3; i < 65536; i++)
			close(i);
		verify(memory, 132, "in a child without descriptors");
		execl(self_path, self_path, "--exec-check", (char *)NULL);
		_exit(99);
	}
	expect_child(child, 0, "a child without descriptors");
	press("descriptors afterwards", memory);
	verify(memory, 131, "after all");
}

void check_prctl(void)
{
	char name[16];
	uint64_t *memory = take(141);
	if (prctl(PR_SET_NAME, "usual-renamed") != 0 || prctl(PR_GET_NAME, name) != 0 || strcmp(name, "usual-renamed") != 0)
		fail("PR_SET_NAME");
	if (prctl(PR_SET_DUMPABLE, 0) != 0 || prctl(PR_GET_DUMPABLE) != 0)
		fail("PR_SET_DUMPABLE");
	press("not dumpable", memory);
	verify(memory, 141, "not dumpable");
	pid_t child = fork();
	if (child == 0) {
		verify(memory, 141, "in a child that is not dumpable");
		fill(memory, 142);
		press("a child that is not dumpable", memory);
		verify(memory, 142, "in a child that is not dumpable");
		_exit(0);
	}
	expect_child(child, 0, "a child that is not dumpable");
	prctl(PR_SET_DUMPABLE, 1);
	// A name splits the mapping; where the kernel has no names, nothing happens.
	prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, memory + (size_t)PAGES / 4 * WORDS, (size_t)PAGES / 2 * PAGE, "usual");
	press("named", memory);
	verify(memory, 141, "named in part");
	// The heap may grow from elsewhere: its old part is memory like any other.
	char *heap = sbrk(0);
	char *other = mmap(NULL, (size_t)64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (prctl(PR_SET_MM, PR_SET_MM_ARG_START, other, 0, 0) != 0 && errno != EPERM && errno != EINVAL)
		fail("PR_SET_MM");
	if (sbrk(0) != heap)
		fail("sbrk");
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	press("prctl", memory);
	verify(memory, 141, "after prctl");
}

// Where nothing of the pager can be reached by its path.
void check_chroot(void)
{
	uint64_t *memory = take(151);
	char dir[] = "/tmp/usual-root.XXXXXX";
	if (!mkdtemp(dir))
		fail(dir);
	press("chroot", memory);
	pid_t child = fork();
	if (child == 0) {
		press("a child before chroot", memory);
		if ((chroot(dir) != 0 && errno != EPERM) || chdir("/") != 0)
			fail("chroot");
		verify(memory, 151, "in another root");
		pid_t grandchild = fork();
		if (grandchild == 0) {
			verify(memory, 151, "of a child made in another root");
			fill(memory, 152);
			press_only();
			verify(memory, 152, "of a child made in another root");
			_exit(0);
		}
		expect_child(grandchild, 0, "a child made in another root");
		_exit(0);
	}
	expect_child(child, 0, "a child in another root");
	rmdir(dir);
	verify(memory, 151, "beside another root");
}

enum { DEEP_CHILDREN = 6 };

static void __attribute__((noinline)) fork_deep(uint64_t *memory, unsigned depth)
{
	volatile char frame[8 * PAGE];
	for (size_t i = 0; i < sizeof frame; i += PAGE)
		frame[i] = (char)depth;
	if (depth) {
		fork_deep(memory, depth - 1);
	} else {
		press("a deep stack", memory);
		pid_t children[DEEP_CHILDREN];
		for (int i = 0; i < DEEP_CHILDREN; i++) {
			if ((children[i] = fork()) == 0) {
				verify(memory, 161, "in the child of a deep stack");
				_exit(0);
			}
			press_only();
		}
		for (int i = 0; i < DEEP_CHILDREN; i++)
			expect_child(children[i], 0, "the child of a deep stack");
	}
	for (size_t i = 0; i < sizeof frame; i += PAGE)
		if (frame[i] != (char)depth) {
			fprintf(stderr, "usual: WRONG frame %u\n", depth);
			exit(1);
		}
}

static void *fork_from_a_thread(void *memory)
{
	for (int round = 0; round < 2; round++)
		fork_deep(memory, 24);
	return NULL;
}

// A thread whose stack has left forks: whatever starts anew in the child needs pages of that stack.
void check_deepfork(void)
{
	pthread_t thread;
	uint64_t *memory = take(161);
	if ((errno = pthread_create(&thread, NULL, fork_from_a_thread, memory)) || (errno = pthread_join(thread, NULL)))
		fail("a thread");
	verify(memory, 161, "after forks of a deep stack");
}
