// Memory that the kernel treats in a way of its own: locked, and droppable.
#include "usual.h"

#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 0x08
#endif

void check_locked(void)
{
	uint64_t *before = take(111);
	press("locked", before);
	pid_t child = fork();
	if (child == 0) {
		// Brings everything back, and all that is mapped from now on.
		if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0)
			fail("mlockall (RLIMIT_MEMLOCK?)");
		verify(before, 111, "locked while it was away");
		uint64_t *after = take(112);
		press_only();
		verify(after, 112, "mapped while all is locked");
		if (munlockall() != 0)
			fail("munlockall");
		press("unlocked", after);
		verify(after, 112, "unlocked");
		verify(before, 111, "unlocked");
		_exit(0);
	}
	expect_child(child, 0, "a process that locks its memory");
	if (mlock(before, (size_t)PAGES * PAGE / 2) != 0)
		fail("mlock");
	press_only();
	verify(before, 111, "half locked");
	if (munlock(before, (size_t)PAGES * PAGE / 2) != 0)
		fail("munlock");
	press("unlocked again", before);
	verify(before, 111, "unlocked again");
}

// The kernel may drop such pages, whole ones, and a child has none of them.
void check_droppable(void)
{
	uint64_t *memory = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_DROPPABLE, -1, 0);
	if (memory == MAP_FAILED && errno != EINVAL)
		fail("mmap of droppable memory");
	int rounds = memory == MAP_FAILED ? 0 : 3; // before Linux 6.11 there is nothing to treat wrongly
	uint64_t *beside = take(121), *copy = take(122);
	for (int round = 0; round < rounds; round++) {
		fill(memory, 123);
		fill(copy, 123);
		press_only();
		for (size_t p = 0; p < PAGES; p++) {
			uint64_t *page = memory + p * WORDS;
			static const uint64_t zeros[WORDS];
			if (memcmp(page, zeros, PAGE) == 0)
				memcpy(page, copy + p * WORDS, PAGE); // dropped
		}
		verify(memory, 123, "droppable");
		pid_t child = fork();
		if (child == 0) {
			for (size_t i = 0; i < (size_t)PAGES * WORDS; i++)
				if (memory[i]) {
					fprintf(stderr, "usual: WRONG droppable memory in a child: word %zu\n", i);
					_exit(1);
				}
			_exit(0);
		}
		expect_child(child, 0, "a child of droppable memory");
	}
	press("droppable", beside);
	verify(beside, 121, "beside droppable memory");
}
