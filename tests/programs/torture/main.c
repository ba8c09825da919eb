// torture: threads that change their mappings in every way Linux has, and check every byte they read.
//
//   torture [-t THREADS] [-s SECONDS] [-m MIB] [-S SEED] [-n OPS] [-p] [--no OP,OP…] [--only OP,OP…] [--list]
//           [--sabotage zero|lost|stale|file|stack|signal|jump|idle|shift|orphan]
//
// --sabotage damages pages as a broken pager would (zeros; the last write undone; another page's bytes; or what
// the operation of that name, or an orphaned child, is about to check), to show that it is noticed.
// Prints "torture: ok" to stdout, the counts to stderr (with -p also on the way: it may be killed); exit status 1 and what was
// wrong at the first wrong byte; 3 if neither a thread nor a child of it made any progress for a minute. Free of data races: it passes on a
// plain kernel.
#include "ops.h"
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define X(id, name, weight) #name,
const char *const op_names[OP_COUNT] = {OPS(X)};
#undef X
#define X(id, name, weight) weight,
static const unsigned weights[OP_COUNT] = {OPS(X)};
#undef X

bool op_on[OP_COUNT];
Thread threads[MAX_THREADS];
int thread_count = 2;
_Atomic int *slots;
int slot_count;
_Atomic int pause_request;
_Atomic bool stop;
const char *self_path;
uint64_t seed_given = 1;
pthread_mutex_t heap_lock = PTHREAD_MUTEX_INITIALIZER;

enum { LIFETIME = 3000, STUCK_SECONDS = 60, TELL_NS = 200000000 }; // operations of one pthread before it exits and another goes on
static uint64_t ops_wanted;
static const char *sabotage;
static bool tells;
static int reports = -1; // every descendant holds the other end
static unsigned total_weight;

static Op choose(Thread *t) {
    unsigned n = below(t, total_weight);
    for (int i = 0; i < OP_COUNT; i++) {
        if (!op_on[i]) continue;
        if (n < weights[i]) return (Op)i;
        n -= weights[i];
    }
    return OP_VERIFY;
}

// Damages a page behind the expectation's back, if it comes upon a suitable one.
static void damage(Thread *t) {
    Region *r = &t->region[below(t, t->regions)];
    if (!r->addr || r->p0 != r->p1) return;
    unsigned i = below(t, r->pages);
    Expect *e = &r->expect[i];
    uint64_t *p = (uint64_t *)(r->addr + (size_t)i * PAGE);
    if (!e->tag || e->freed || r->wipe) return;
    if (!strcmp(sabotage, "zero")) {
        memset(p, 0, PAGE);
    } else if (!strcmp(sabotage, "lost")) {
        if (!e->count) return;
        p[COUNT_WORD]--;
    } else if (!strcmp(sabotage, "stale")) {
        Expect old = {.tag = e->tag - 8, .count = e->count};
        for (unsigned w = 0; w < WORDS; w++) p[w] = expect_word(&old, w);
    }
}

bool sabotages(Thread *t, const char *what) { return sabotage && t->ops > 500 && !strcmp(sabotage, what); }

static void enter(Thread *t) {
    for (;;) {
        atomic_store(&t->in_op, 1);
        if (!atomic_load(&pause_request)) return;
        atomic_store(&t->in_op, 0);
        while (atomic_load(&pause_request)) sched_yield();
    }
}

static void *work(void *arg) {
    Thread *t = arg;
    bool last = false;
    for (int i = 0; i < LIFETIME && !last; i++) {
        Op op = choose(t);
        enter(t);
        atomic_store(&t->op_now, op);
        if (sabotage && t->id == 0 && t->ops > 500) damage(t);
        run_op(t, op);
        t->ops++;
        if (t->ops % 16 == 0) expire_protections(t, false);
        last = atomic_load(&stop) || (ops_wanted && t->ops >= ops_wanted);
        if (last) {
            expire_protections(t, true);
            while (t->idles) do_idle(t);
            for (unsigned k = 0; k < t->regions; k++)
                if (t->region[k].addr) check_region(t, &t->region[k], "at the end");
            reap(t, true);
            atomic_store(&t->finished, 1);
        }
        atomic_fetch_add(t->progress, 1);
        atomic_store(&t->in_op, 0);
    }
    atomic_store(&t->running, 0);
    return NULL;
}

static void *or_die(void *p, const char *what) {
    if (p && p != MAP_FAILED) return p;
    fprintf(stderr, "torture: %s: %s\n", what, strerror(errno));
    exit(2);
}

static const char *known_sabotage(const char *name) {
    static const char *const all[] = {"zero", "lost", "stale", "file", "stack", "signal", "jump", "idle", "shift", "orphan"};
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
        if (!strcmp(name, all[i])) return name;
    fprintf(stderr, "torture: no sabotage %s\n", name);
    exit(2);
}

static void set_ops(const char *list, bool value) {
    char *copy = or_die(strdup(list), "strdup"), *save = NULL;
    for (char *name = strtok_r(copy, ",", &save); name; name = strtok_r(NULL, ",", &save)) {
        int i = 0;
        while (i < OP_COUNT && strcmp(name, op_names[i])) i++;
        if (i == OP_COUNT) {
            fprintf(stderr, "torture: no operation class %s (--list prints them)\n", name);
            exit(2);
        }
        op_on[i] = value;
    }
    free(copy);
}

static void start(Thread *t, uint64_t budget_pages) {
    t->rng = mix(seed_given * 1000003 + (uint64_t)t->id);
    t->budget = (unsigned)budget_pages;
    t->regions = t->budget / 64 + 8;
    t->region = or_die(calloc(t->regions, sizeof(Region)), "calloc");
    size_t bytes = (size_t)t->regions * SLOT_PAGES * sizeof(Expect);
    Expect *all = or_die(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap");
    for (unsigned i = 0; i < t->regions; i++) t->region[i].expect = all + (size_t)i * SLOT_PAGES;
    if (pipe(t->pipe)) or_die(NULL, "pipe");
}

static void report(double seconds) {
    uint64_t sum[OP_COUNT] = {0}, ops = 0, verified = 0, refused = 0, lost = 0, stolen = 0;
    for (int i = 0; i < thread_count; i++) {
        Thread *t = &threads[i];
        ops += t->ops, verified += t->verified, refused += t->refused, lost += t->lost, stolen += t->stolen;
        for (int k = 0; k < OP_COUNT; k++) sum[k] += t->counts[k];
    }
    fprintf(stderr, "torture: %d threads %.1f s seed %lu: %lu ops, %lu pages verified, %lu slots stolen, %lu regions lost to a refused "
            "mremap, %lu mremaps refused with EFAULT;", thread_count, seconds, (unsigned long)seed_given, (unsigned long)ops,
            (unsigned long)verified, (unsigned long)stolen, (unsigned long)lost, (unsigned long)refused);
    for (int k = 0; k < OP_COUNT; k++)
        if (sum[k]) fprintf(stderr, " %s %lu", op_names[k], (unsigned long)sum[k]);
    fprintf(stderr, "\n");
}

// Descendants may outlive their parents: waits for the last of them, and for what any of them reports.
static void hear_reports(void) {
    char word;
    struct pollfd end = {.fd = reports, .events = POLLIN};
    close(REPORT_FD);
    int ready;
    while ((ready = poll(&end, 1, STUCK_SECONDS * 1000)) < 0 && errno == EINTR) {}
    if (ready <= 0) {
        fprintf(stderr, "torture: STUCK: a descendant does not end, seed %lu\n", (unsigned long)seed_given);
        _exit(3);
    }
    if (read(reports, &word, 1) != 0) {
        fprintf(stderr, "torture: WRONG in a descendant, seed %lu\n", (unsigned long)seed_given);
        _exit(1);
    }
}

static void open_reports(void) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) || dup2(ends[1], REPORT_FD) < 0) or_die(NULL, "pipe"); // the copy passes through exec
    reports = ends[0];
    close(ends[1]);
}

// The main thread renews threads that have lived long enough, and sees to it that all get on.
static void supervise(uint64_t begin, uint64_t until) {
    pthread_t handle[MAX_THREADS];
    uint64_t seen[MAX_THREADS] = {0}, since[MAX_THREADS] = {0}, signalled[MAX_THREADS] = {0};
    bool exists[MAX_THREADS] = {false};
    for (uint64_t told = begin;;) {
        int done = 0;
        for (int i = 0; i < thread_count; i++) {
            Thread *t = &threads[i];
            if (!atomic_load(&t->running)) {
                pthread_mutex_lock(&heap_lock);
                if (exists[i]) pthread_join(handle[i], NULL);
                exists[i] = !atomic_load(&t->finished);
                if (exists[i]) {
                    atomic_store(&t->running, 1);
                    int e = pthread_create(&handle[i], NULL, work, t);
                    if (e) broken(t, "pthread_create", NULL, e);
                } else {
                    done++;
                }
                pthread_mutex_unlock(&heap_lock);
            }
            uint64_t now = now_ns(), progress = atomic_load(t->progress);
            // None before it got on: where memory is short, a handler may take longer than we rest here.
            if (exists[i] && op_on[OP_SIGNAL] && progress != signalled[i]) {
                pthread_kill(handle[i], SIGUSR2);
                signalled[i] = progress;
            }
            if (progress != seen[i] || !since[i]) seen[i] = progress, since[i] = now;
            else if (exists[i] && now - since[i] > STUCK_SECONDS * 1000000000ull) {
                fprintf(stderr, "torture: STUCK thread %d in %s for %d s, seed %lu\n", i, op_names[t->op_now], STUCK_SECONDS,
                        (unsigned long)seed_given);
                _exit(3);
            }
        }
        if (done == thread_count) return;
        if (now_ns() >= until) atomic_store(&stop, true);
        if (tells && now_ns() - told > TELL_NS) told = now_ns(), report((double)(told - begin) / 1e9);
        usleep(2000);
    }
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"no", required_argument, NULL, 'x'},   {"only", required_argument, NULL, 'o'},
                                            {"list", no_argument, NULL, 'l'},       {"exec-check", required_argument, NULL, 'e'},
                                            {"ops", required_argument, NULL, 'n'},  {"sabotage", required_argument, NULL, 'b'},
                                            {NULL, 0, NULL, 0}};
    double seconds = 10;
    uint64_t mib = 64;
    for (int i = 0; i < OP_COUNT; i++) op_on[i] = true;
    for (int c; (c = getopt_long(argc, argv, "t:s:m:S:n:p", options, NULL)) != -1;) switch (c) {
        case 't': thread_count = atoi(optarg); break;
        case 's': seconds = atof(optarg); break;
        case 'm': mib = strtoull(optarg, NULL, 10); break;
        case 'S': seed_given = strtoull(optarg, NULL, 10); break;
        case 'b': sabotage = known_sabotage(optarg); break;
        case 'p': tells = true; break;
        case 'n': ops_wanted = strtoull(optarg, NULL, 10); break;
        case 'x': set_ops(optarg, false); break;
        case 'o': memset(op_on, 0, sizeof op_on), set_ops("map,fill,verify", true), set_ops(optarg, true); break;
        case 'e': return exec_check(strtoull(optarg, NULL, 10));
        case 'l': for (int i = 0; i < OP_COUNT; i++) puts(op_names[i]); return 0;
        default: fprintf(stderr, "usage: torture [-t threads] [-s seconds] [-m MiB] [-S seed] [-n ops] [-p] [--no op,…] [--only op,…] [--list]\n"); return 2;
        }
    if (thread_count < 1 || thread_count > MAX_THREADS) return fprintf(stderr, "torture: -t 1 to %d\n", MAX_THREADS), 2;
    static char self[PATH_MAX];
    or_die(realpath("/proc/self/exe", self), "realpath");
    self_path = self;
    for (int i = 0; i < OP_COUNT; i++) total_weight += op_on[i] ? weights[i] : 0;
    _Atomic uint64_t *progress =
        or_die(mmap(NULL, MAX_THREADS * sizeof *progress, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), "mmap");
    for (int i = 0; i < thread_count; i++) {
        threads[i].id = i;
        threads[i].progress = &progress[i];
        start(&threads[i], mib * 256 / (uint64_t)thread_count);
        slot_count += (int)threads[i].regions * 2;
    }
    slots = or_die(calloc((size_t)slot_count, sizeof *slots), "calloc");
    catch_faults();
    catch_signals();
    open_reports();
    uint64_t begin = now_ns();
    supervise(begin, ops_wanted ? UINT64_MAX : begin + (uint64_t)(seconds * 1e9));
    hear_reports();
    report((double)(now_ns() - begin) / 1e9);
    puts("torture: ok");
    return 0;
}
