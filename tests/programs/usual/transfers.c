// The kernel takes hold of memory past read(2) and write(2): O_DIRECT, vmsplice, and the memory of another process.
#include "usual.h"
#include <fcntl.h>
#include <sys/uio.h>

enum { BYTES = PAGES * PAGE, PIPE_PAGES = 16 };

void check_direct(void)
{
	int file = file_in_temporary(O_RDWR | O_DIRECT);
	uint64_t *from = take(21), *to = take(22);
	press("direct write", from);
	if (pwrite(file, from, BYTES, 0) != BYTES)
		fail("pwrite with O_DIRECT");
	fill(to, 22);
	press("direct read", to);
	if (pread(file, to, BYTES, 0) != BYTES)
		fail("pread with O_DIRECT");
	verify(to, 21, "read with O_DIRECT");
	close(file);
}

static void whole(ssize_t got, size_t want, const char *what)
{
	if (got != (ssize_t)want)
		fail(what);
}

void check_vmsplice(void)
{
	int ends[2];
	uint64_t *from = take(31), *to = take(32);
	const size_t part = (size_t)PIPE_PAGES * PAGE;
	if (pipe2(ends, O_CLOEXEC) != 0)
		fail("pipe2");
	// The pipe holds the pages themselves; their owner's may leave meanwhile.
	for (int round = 0; round < 2; round++) {
		fill(from, 31);
		press("vmsplice out", from);
		for (size_t done = 0; done < BYTES; done += part) {
			struct iovec io = {(char *)from + done, part};
			whole(vmsplice(ends[1], &io, 1, 0), part, "vmsplice");
			if (round && done % (32 * part) == 0)
				press_only();
			for (size_t got = 0; got < part;) {
				ssize_t n = read(ends[0], (char *)to + done + got, part - got);
				if (n <= 0)
					fail("read of a pipe");
				got += (size_t)n;
			}
		}
		verify(to, 31, "through a pipe of borrowed pages");
	}
	fill(to, 32);
	press("vmsplice in", to);
	for (size_t done = 0; done < BYTES; done += part) {
		struct iovec io = {(char *)to + done, part};
		whole(write(ends[1], (char *)from + done, part), part, "write to a pipe");
		whole(vmsplice(ends[0], &io, 1, 0), part, "vmsplice out of a pipe");
	}
	verify(to, 31, "by vmsplice out of a pipe");
	close(ends[0]);
	close(ends[1]);
}

// A parent reads and writes what its child's pager has taken.
void check_remote(void)
{
	int ready[2], go[2];
	char word;
	uint64_t *memory = take(41), *copy = take(42);
	if (pipe2(ready, O_CLOEXEC) != 0 || pipe2(go, O_CLOEXEC) != 0)
		fail("pipe2");
	pid_t child = fork();
	if (child == 0) {
		close(go[1]); // or it would wait for a parent that has failed
		fill(memory, 43);
		press("remote", memory);
		whole(write(ready[1], "r", 1), 1, "write");
		whole(read(go[0], &word, 1), 1, "read");
		verify(memory, 44, "written by another process");
		_exit(0);
	}
	whole(read(ready[0], &word, 1), 1, "read");
	for (size_t done = 0; done < BYTES; done += BYTES / 4) {
		struct iovec here = {(char *)copy + done, BYTES / 4}, there = {(char *)memory + done, BYTES / 4};
		whole(process_vm_readv(child, &here, 1, &there, 1, 0), BYTES / 4, "process_vm_readv");
	}
	verify(copy, 43, "read from another process");
	fill(copy, 44);
	for (size_t done = 0; done < BYTES; done += BYTES / 4) {
		struct iovec here = {(char *)copy + done, BYTES / 4}, there = {(char *)memory + done, BYTES / 4};
		whole(process_vm_writev(child, &here, 1, &there, 1, 0), BYTES / 4, "process_vm_writev");
	}
	whole(write(go[1], "g", 1), 1, "write");
	expect_child(child, 0, "the other process");
	verify(memory, 41, "the parent's own");
}
