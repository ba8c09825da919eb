// Shared memory of all kinds, beside private memory that leaves.
#include "usual.h"
#include <fcntl.h>
#include <sys/ipc.h>
#include <sys/shm.h>

enum { BYTES = PAGES * PAGE };

static uint64_t *map_file(int file, int how)
{
	uint64_t *memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, how, file, 0);
	if (memory == MAP_FAILED)
		fail("mmap of a file");
	return memory;
}

// A child's writes arrive here, whatever has left meanwhile.
static void share(uint64_t *memory, uint64_t salt, const char *what)
{
	uint64_t *private = take(salt + 1);
	fill(memory, salt);
	press(what, private);
	pid_t child = fork();
	if (child == 0) {
		verify(memory, salt, what);
		verify(private, salt + 1, "inherited beside shared memory");
		fill(memory, salt + 2);
		press_only();
		_exit(0);
	}
	expect_child(child, 0, what);
	press_only();
	verify(memory, salt + 2, what);
	verify(private, salt + 1, "private beside shared memory");
}

void check_memfd(void)
{
	int file = memfd_create("usual", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (file < 0 || ftruncate(file, BYTES) != 0)
		fail("memfd_create");
	uint64_t *shared = map_file(file, MAP_SHARED);
	share(shared, 51, "memfd");
	// Private pages of a file: those written are the process's own.
	uint64_t *private = map_file(file, MAP_PRIVATE);
	verify(private, 53, "a private mapping of a memfd");
	fill(private, 54);
	press_only();
	verify(private, 54, "own pages of a private mapping");
	verify(shared, 53, "what it is a copy of");
	munmap(private, BYTES);
	munmap(shared, BYTES);
	if (fcntl(file, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK) != 0)
		fail("seals");
	uint64_t *again = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, file, 0), *copy = take(55);
	if (again == MAP_FAILED || pread(file, copy, BYTES, 0) != BYTES || memcmp(again, copy, BYTES) != 0)
		fail("a sealed memfd");
	verify(copy, 53, "a sealed memfd");
	close(file);
	uint64_t *anonymous = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (anonymous == MAP_FAILED)
		fail("mmap");
	share(anonymous, 56, "shared anonymous memory");
}

void check_shm(void)
{
	int id = shmget(IPC_PRIVATE, BYTES, IPC_CREAT | 0600);
	uint64_t *memory = id < 0 ? (void *)-1 : shmat(id, NULL, 0);
	if (memory == (void *)-1 || shmctl(id, IPC_RMID, NULL) != 0)
		fail("System V shared memory");
	share(memory, 61, "System V shared memory");
	// Over private memory that has left, as SHM_REMAP allows.
	uint64_t *under = take(64);
	press("shmat", under);
	if (shmat(id, under, SHM_REMAP) != under)
		fail("shmat over private memory");
	verify(under, 63, "attached over what had left");
	if (shmdt(under) != 0)
		fail("shmdt");
	uint64_t *fresh = mmap(under, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (fresh != under)
		fail("mmap where it was attached");
	for (size_t i = 0; i < (size_t)PAGES * WORDS; i += WORDS)
		if (fresh[i]) {
			fprintf(stderr, "usual: WRONG fresh memory after shmdt\n");
			exit(1);
		}
	shmdt(memory);
	char name[64];
	snprintf(name, sizeof name, "/usual-%d", getpid());
	int file = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
	if (file < 0 || shm_unlink(name) != 0 || ftruncate(file, BYTES) != 0)
		fail("POSIX shared memory");
	share(map_file(file, MAP_SHARED), 66, "POSIX shared memory");
	close(file);
}
