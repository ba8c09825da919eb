// Pages travel through a file: write(2) from paged memory and read(2) into it, with and without the page cache.
#include "ops.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum { MOST = 32 };

// Two descriptors of one file without a name; the second reads past the page cache, where the file system can.
static void open_files(Thread *t) {
    const char *dir = getenv("TMPDIR");
    char name[256];
    snprintf(name, sizeof name, "%s/torture.XXXXXX", dir && *dir ? dir : "/tmp");
    t->file[0] = mkostemp(name, O_CLOEXEC);
    if (t->file[0] < 0) broken(t, "mkostemp", NULL, errno);
    t->file[1] = open(name, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (t->file[1] < 0) t->file[1] = open(name, O_RDWR | O_CLOEXEC);
    if (t->file[1] < 0 || unlink(name)) broken(t, "a second descriptor", NULL, errno);
}

// The range in two halves, for the calls that take several.
static int halves(struct iovec io[2], char *addr, unsigned n) {
    unsigned first = n / 2;
    io[0] = (struct iovec){addr, (size_t)first * PAGE};
    io[1] = (struct iovec){addr + (size_t)first * PAGE, (size_t)(n - first) * PAGE};
    return 2;
}

void do_file(Thread *t) {
    if (!t->file[1]) open_files(t);
    Region *from, *to;
    unsigned a, b, n = pick_copy(t, MOST, &from, &a, &to, &b);
    if (!n) return;
    char *source = from->addr + (size_t)a * PAGE, *target = to->addr + (size_t)b * PAGE;
    size_t bytes = (size_t)n * PAGE;
    off_t at = (off_t)below(t, 64) * PAGE;
    int out = t->file[below(t, 2)], in = t->file[below(t, 2)];
    struct iovec io[2];
    ssize_t w = below(t, 2) ? pwrite(out, source, bytes, at) : pwritev(out, io, halves(io, source, n), at);
    if (w != (ssize_t)bytes) broken(t, "pwrite(2) from paged memory", source, w < 0 ? errno : 0);
    ssize_t r = below(t, 2) ? pread(in, target, bytes, at) : preadv(in, io, halves(io, target, n), at);
    if (r != (ssize_t)bytes) broken(t, "pread(2) to paged memory", target, r < 0 ? errno : 0);
    note(t, OP_FILE, source, n, target, n, 0);
    memcpy(&to->expect[b], &from->expect[a], n * sizeof(Expect));
    if (sabotages(t, "file")) target[bytes - 1] ^= 1;
    for (unsigned i = 0; i < n; i++) check_page(t, to, b + i, "after a file");
}
