// io_uring, by its bare system calls: the kernel reads and writes memory from its own contexts, and may pin it.
#include "usual.h"
#include <linux/io_uring.h>
#include <sys/uio.h>

enum { ENTRIES = 64, CHUNK = 64 * 1024, CHUNKS = (size_t)PAGES * PAGE / CHUNK };

struct ring {
	int fd;
	char *queues;
	struct io_uring_sqe *sqes;
	struct io_uring_params params;
};

static struct ring open_ring(void)
{
	struct ring ring = {0};
	ring.fd = (int)syscall(SYS_io_uring_setup, ENTRIES, &ring.params);
	if (ring.fd < 0)
		fail("io_uring_setup");
	if (!(ring.params.features & IORING_FEAT_SINGLE_MMAP)) {
		errno = ENOSYS;
		fail("io_uring: one mapping for both queues");
	}
	size_t submit = ring.params.sq_off.array + ring.params.sq_entries * sizeof(uint32_t);
	size_t complete = ring.params.cq_off.cqes + ring.params.cq_entries * sizeof(struct io_uring_cqe);
	size_t size = submit > complete ? submit : complete;
	ring.queues = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd, IORING_OFF_SQ_RING);
	ring.sqes = mmap(NULL, ENTRIES * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
			 ring.fd, IORING_OFF_SQES);
	if (ring.queues == MAP_FAILED || ring.sqes == MAP_FAILED)
		fail("mmap of a ring");
	return ring;
}

static uint32_t *at(struct ring *ring, uint32_t offset)
{
	return (uint32_t *)(ring->queues + offset);
}

// All chunks of the memory from or to a file, in flight together.
static void transfer(struct ring *ring, uint8_t opcode, int file, char *memory, unsigned flags)
{
	uint32_t mask = *at(ring, ring->params.sq_off.ring_mask), tail = *at(ring, ring->params.sq_off.tail);
	for (unsigned i = 0; i < CHUNKS; i++) {
		uint32_t index = (tail + i) & mask;
		ring->sqes[index] = (struct io_uring_sqe){
			.opcode = opcode,
			.flags = (uint8_t)flags,
			.fd = file,
			.off = (uint64_t)i * CHUNK,
			.addr = (uint64_t)(uintptr_t)(memory + (size_t)i * CHUNK),
			.len = CHUNK,
			.user_data = i,
		};
		at(ring, ring->params.sq_off.array)[index] = index;
	}
	__atomic_store_n(at(ring, ring->params.sq_off.tail), tail + CHUNKS, __ATOMIC_RELEASE);
	for (unsigned done = 0, sent = 0; done < CHUNKS;) {
		long n = syscall(SYS_io_uring_enter, ring->fd, CHUNKS - sent, 1, IORING_ENTER_GETEVENTS, NULL, 0);
		if (n < 0 && errno != EINTR)
			fail("io_uring_enter");
		sent += n > 0 ? (unsigned)n : 0;
		uint32_t *head = at(ring, ring->params.cq_off.head);
		while (*head != __atomic_load_n(at(ring, ring->params.cq_off.tail), __ATOMIC_ACQUIRE)) {
			struct io_uring_cqe *entries = (struct io_uring_cqe *)(ring->queues + ring->params.cq_off.cqes);
			struct io_uring_cqe *entry = &entries[*head & *at(ring, ring->params.cq_off.ring_mask)];
			if (entry->res != CHUNK) {
				errno = entry->res < 0 ? -entry->res : EIO;
				fail("a request of io_uring");
			}
			__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
			done++;
		}
	}
}

void check_uring(void)
{
	static const unsigned ways[] = {0, IOSQE_ASYNC}; // by the caller, and by the kernel's worker threads
	struct ring ring = open_ring();
	int file = file_in_temporary(0);
	uint64_t *from = take(11), *to = take(12);
	for (int way = 0; way < 2; way++) {
		press("uring write", from);
		transfer(&ring, IORING_OP_WRITE, file, (char *)from, ways[way]);
		fill(to, 12);
		press("uring read", to);
		transfer(&ring, IORING_OP_READ, file, (char *)to, ways[way]);
		verify(to, 11, "read by io_uring");
	}
	// Pinned from now on: such a page must not leave, or the kernel would go on with the old one.
	struct iovec all = {to, (size_t)PAGES * PAGE};
	fill(to, 13);
	press("uring registration", to);
	if (syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &all, 1) != 0)
		fail("io_uring_register (RLIMIT_MEMLOCK?)");
	for (int round = 0; round < 3; round++) {
		press_only();
		transfer(&ring, IORING_OP_READ_FIXED, file, (char *)to, ways[round & 1]);
		verify(to, 11, "read into a registered buffer");
		fill(to, 14 + (uint64_t)round);
		press_only();
		transfer(&ring, IORING_OP_WRITE_FIXED, file, (char *)to, ways[round & 1]);
		if (pread(file, from, (size_t)PAGES * PAGE, 0) != PAGES * PAGE)
			fail("pread");
		verify(from, 14 + (uint64_t)round, "written from a registered buffer");
		fill(from, 11);
		if (pwrite(file, from, (size_t)PAGES * PAGE, 0) != PAGES * PAGE)
			fail("pwrite");
	}
	// Afterwards it leaves like any other.
	if (syscall(SYS_io_uring_register, ring.fd, IORING_UNREGISTER_BUFFERS, NULL, 0) != 0)
		fail("io_uring_register");
	fill(to, 15);
	press("uring afterwards", to);
	verify(to, 15, "after the registration");
	close(ring.fd);
	close(file);
}
