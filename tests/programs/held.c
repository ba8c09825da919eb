// Takes memory while nothing can make room for it: LOCKED_MIB are locked, and a thread goes round a few pages, so that some
// always leave and come back. Prints how many fresh pages it has written.
//
//     held LOCKED_MIB PAGES
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, ROUND = 512 };

static atomic_int over;

static unsigned char *fresh(size_t pages)
{
	unsigned char *area = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (area == MAP_FAILED)
		exit(2);
	return area;
}

static void *go_round(void *unused)
{
	unsigned char *area = fresh(ROUND);
	for (unsigned turn = 0; !over; turn++) {
		for (size_t page = 0; page < ROUND; page++)
			memset(area + page * PAGE, (int)(turn + page), 64);
		usleep(20000);
	}
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t other;
	size_t locked = argc > 2 ? strtoull(argv[1], NULL, 10) * 256 : 0, pages = argc > 2 ? strtoull(argv[2], NULL, 10) : 0;
	unsigned char *area = fresh(locked), *wanted = fresh(pages);
	if (pthread_create(&other, NULL, go_round, NULL))
		return 2;
	for (size_t page = 0; page < locked; page++)
		area[page * PAGE] = 1;
	if (mlock(area, locked * PAGE))
		return 2;
	sleep(1);
	for (size_t page = 0; page < pages; page++)
		wanted[page * PAGE] = 1;
	over = 1;
	pthread_join(other, NULL);
	printf("%zu\n", pages);
	return 0;
}
