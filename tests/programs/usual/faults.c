// A program with a userfaultfd of its own: its pages are its business, the rest is the pager's.
#include "usual.h"
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>

struct served {
	int fd;
	uint64_t *source;
	char *target;
	unsigned count;
};

static void *serve(void *arg)
{
	struct served *served = arg;
	for (;;) {
		struct uffd_msg message;
		ssize_t n = read(served->fd, &message, sizeof message);
		if (n < 0 && errno == EINTR)
			continue;
		if (n != sizeof message)
			fail("read of a userfaultfd");
		uint64_t at = message.arg.pagefault.address & ~(uint64_t)(PAGE - 1);
		uint64_t offset = at - (uint64_t)(uintptr_t)served->target;
		if (message.event != UFFD_EVENT_PAGEFAULT || offset >= (uint64_t)PAGES * PAGE)
			continue;
		struct uffdio_copy copy = {.dst = at, .src = (uint64_t)(uintptr_t)served->source + offset, .len = PAGE};
		served->count++;
		if (ioctl(served->fd, UFFDIO_COPY, &copy) != 0)
			fail("UFFDIO_COPY");
	}
	return NULL;
}

static int open_userfaultfd(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	if (fd >= 0)
		return fd;
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	fd = device < 0 ? -1 : ioctl(device, _IO(0xAA, 0) /* USERFAULTFD_IOC_NEW */, O_CLOEXEC);
	close(device);
	return fd;
}

void check_userfaultfd(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct served served = {.fd = open_userfaultfd()};
	if (served.fd < 0 || ioctl(served.fd, UFFDIO_API, &api) != 0)
		fail("userfaultfd");
	served.source = take(101); // leaves, too: the handler itself waits for the pager then
	uint64_t *target = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (target == MAP_FAILED)
		fail("mmap");
	served.target = (char *)target;
	struct uffdio_register range = {.range = {(uint64_t)(uintptr_t)target, (uint64_t)PAGES * PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	if (ioctl(served.fd, UFFDIO_REGISTER, &range) != 0)
		fail("UFFDIO_REGISTER");
	pthread_t thread;
	if ((errno = pthread_create(&thread, NULL, serve, &served)))
		fail("a thread");
	press("userfaultfd", served.source);
	verify(target, 101, "served by the program itself");
	press_only();
	verify(target, 101, "after pressure");
	if (served.count != PAGES) {
		fprintf(stderr, "usual: WRONG %u pages served, %d touched\n", served.count, PAGES);
		exit(1);
	}
	// Given up, it is memory like any other; and what was the pager's may become the program's.
	if (ioctl(served.fd, UFFDIO_UNREGISTER, &range.range) != 0)
		fail("UFFDIO_UNREGISTER");
	fill(target, 102);
	press("userfaultfd afterwards", target);
	verify(target, 102, "given up by the program");
	pthread_cancel(thread);
	pthread_join(thread, NULL);
	close(served.fd);
}
