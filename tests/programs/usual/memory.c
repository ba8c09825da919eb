// Memory with known contents, and the pressure on it.
#include "usual.h"
#include <fcntl.h>
#include <time.h>

extern size_t ballast_pages;
extern bool damages;

static uint64_t word(uint64_t salt, uint64_t page, uint64_t index)
{
	uint64_t x = (salt * 0x9e3779b97f4a7c15u) ^ (page << 20) ^ (index / 4 * 0xbf58476d1ce4e5b9u);
	return x ^ (x >> 29);
}

void fill(uint64_t *memory, uint64_t salt)
{
	for (uint64_t p = 0; p < PAGES; p++)
		for (uint64_t i = 0; i < WORDS; i++)
			memory[p * WORDS + i] = word(salt, p, i);
}

uint64_t *take(uint64_t salt)
{
	uint64_t *memory = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		fail("mmap");
	fill(memory, salt);
	return memory;
}

void verify(uint64_t *memory, uint64_t salt, const char *when)
{
	if (damages)
		memory[(PAGES / 2) * WORDS + 7] ^= 1;
	for (uint64_t p = 0; p < PAGES; p++)
		for (uint64_t i = 0; i < WORDS; i++)
			if (memory[p * WORDS + i] != word(salt, p, i)) {
				fprintf(stderr, "usual: WRONG %s: page %lu word %lu: expected %#lx got %#lx\n", when, (unsigned long)p,
					(unsigned long)i, (unsigned long)word(salt, p, i), (unsigned long)memory[p * WORDS + i]);
				exit(1);
			}
}

void press_only(void)
{
	static uint64_t *ballast;
	static uint64_t round;
	if (!ballast) {
		ballast = mmap(NULL, ballast_pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (ballast == MAP_FAILED)
			fail("mmap");
		for (size_t p = 0; p < ballast_pages; p++)
			for (size_t i = 0; i < WORDS; i += 3)
				ballast[p * WORDS + i] = word(1, p, i);
	}
	for (int pass = 0; pass < 2; pass++, round++)
		for (size_t p = 0; p < ballast_pages; p++) {
			uint64_t *counter = &ballast[p * WORDS + 1];
			if (*counter != round || ballast[p * WORDS + 6] != word(1, p, 6)) {
				fprintf(stderr, "usual: WRONG ballast page %zu\n", p);
				exit(1);
			}
			++*counter;
		}
}

static size_t count_away(const void *memory)
{
	static uint64_t entries[PAGES];
	size_t away = 0;
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pagemap < 0 || pread(pagemap, entries, sizeof entries, (off_t)((uintptr_t)memory / PAGE * 8)) != sizeof entries)
		fail("/proc/self/pagemap");
	close(pagemap);
	for (size_t p = 0; p < PAGES; p++)
		away += entries[p] >> 62 == 0; // neither present nor swapped
	return away;
}

void press(const char *check, const void *memory)
{
	// A busy machine leaves a pager no time; then there is nothing to see yet.
	time_t end = getenv("VSWAP_SESSION") ? time(NULL) + 60 : 0;
	size_t away;
	do {
		press_only();
		away = count_away(memory);
	} while (away < PAGES / 2 && time(NULL) < end);
	fprintf(stderr, "usual: %s: %zu of %d pages away\n", check, away, PAGES);
}
