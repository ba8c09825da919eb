#!/usr/bin/env python3
"""Makes system calls of the pager or of an agent fail, one a round, and looks at what becomes of the program.

    inject.py --vswap PATH --limit SIZE [--rounds N] [--seed N] [--only KIND] [--pool-max SIZE] -- CMD…
    inject.py --every … the same, in place of random rounds: each system call that the pager and an agent are seen to
              make, with each of its errors and with SIGKILL, the first time, a middle time and a random one; and the first
              allocation on each way through the pager that is seen to lead to one
              (--only pager, agent or alloc does these alone, --from N goes on at a round, --seconds N ends after so long)

CMD runs once without vswap; what it prints is what is right. Then each round runs it under vswap and does one thing
of a kind to it while it runs:

    pager      one system call of the pager fails, or all of that name from then on (strace -e inject)
    agent      the same inside an agent's thread
    memory     the pager gets no more address space (RLIMIT_AS)
    alloc      one allocation of the pager fails, or all from there on (failalloc.c, preloaded)
    files      the pager gets no more descriptors (RLIMIT_NOFILE)
    pause      the pager, or every process of the tree, is stopped for a moment

With --every the tally tells apart the rounds in which the fault was not reached: another run may do other things.

Afterwards CMD's output must be right and its status 0, or the run must have failed: with 125 and a message of vswap,
or with CMD killed. Never may wrong output come with status 0, nor may the run hang, nor a process be left behind.
"""

import argparse
import collections
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time

from killpager import alive, processes, tree, wait_for_victim

# What Linux may answer to each call at any time.
PAGER = {
    "ioctl": ["ENOMEM", "EAGAIN", "EFAULT"],
    "read": ["EINTR", "ENOMEM", "EIO"],
    "write": ["EINTR", "EIO"],
    "pread64": ["EIO", "EINTR"],
    "pwrite64": ["EIO", "ENOSPC"],
    "pwritev": ["EIO", "ENOSPC"],
    "preadv": ["EIO"],
    "poll": ["EINTR", "ENOMEM"],
    "ppoll": ["EINTR", "ENOMEM"],
    "recvmsg": ["ENOMEM", "ECONNRESET", "EINTR"],
    "sendmsg": ["ENOMEM", "ENOBUFS", "EPIPE"],
    "openat": ["EMFILE", "ENOMEM"],
    "mmap": ["ENOMEM"],
    "munmap": ["ENOMEM"],
    "madvise": ["ENOMEM"],
    "fallocate": ["ENOSPC", "EIO"],
    "clone3": ["EAGAIN"],
    "accept4": ["EMFILE"],
    "sched_setaffinity": ["EINVAL"],
    "getdents64": ["ENOMEM"],
    "process_vm_readv": ["ENOMEM"],
    "ptrace": ["EPERM"],
    "sync_file_range": ["EIO"],
    # A wake-up that was not made would be for ever missing, and a break that is an error is an address to C libraries; no
    # kernel does either.
    "futex": [],
    "brk": [],
}
AGENT = {
    "ioctl": ["ENOMEM", "EAGAIN", "EBUSY", "EINVAL"],
    "madvise": ["ENOMEM", "EAGAIN"],
    "pread64": ["ENOMEM", "EIO"],
    "recvmsg": ["ENOMEM", "ECONNRESET", "EINTR"],
    "recvfrom": ["ENOMEM", "ECONNRESET", "EINTR"],
    "sendmsg": ["ENOBUFS", "EPIPE"],
    "sendto": ["ENOBUFS", "EPIPE"],
    "mremap": ["ENOMEM"],
}
KINDS = ["pager", "agent", "memory", "alloc", "files", "pause"]
TIMEOUT = 240


# For calls that are in neither table.
OTHERS = ["ENOMEM", "EINTR"]
# To make these fail is not to be expected of a kernel, or stops no call.
NEVER = {"exit", "exit_group", "rt_sigreturn", "restart_syscall", "sched_yield", "getpid", "gettid", "execve"}


def strace(tid, call, error, when, log="/dev/null"):
    """A tracer that makes calls of one thread (a pager: of all its threads) fail, or end in a signal."""
    follow = ["-f"] if call[0] == "pager" else []
    what = "signal" if error.startswith("SIG") else "error"
    command = ["strace", "-qq", *follow, "-o", log, "-p", str(tid), "-e", "trace=" + call[1],
               "-e", "inject=%s:%s=%s:when=%s" % (call[1], what, error, when)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def agents(root):
    """Agent threads of the tree: they share no descriptors with their process, and block every signal."""
    found = []
    for pid, (comm, _) in tree(root).items():
        if comm.startswith("vswap"):
            continue
        try:
            for tid in os.listdir("/proc/%d/task" % pid):
                with open("/proc/%d/task/%s/status" % (pid, tid)) as f:
                    blocked = [line.split()[1] for line in f if line.startswith("SigBlk")][0]
                if int(tid) != pid and int(blocked, 16) & 0x7FFFFFFF == 0x7FFBFEFF:
                    found.append(int(tid))
        except OSError:
            pass
    return found


def standing(root):
    """What each thread of a run is at that hangs."""
    lines, every_one, members = [], processes(), [root]
    for pid in members:  # which grows
        members += [child for child, process in every_one.items() if process[2] == pid]
    for pid in members:
        try:
            for tid in os.listdir("/proc/%d/task" % pid):
                said = []
                for name in ("comm", "wchan", "syscall", "status"):
                    with open("/proc/%d/task/%s/%s" % (pid, tid, name)) as f:
                        said.append(f.read().strip())
                state = [line for line in said.pop().splitlines() if line.startswith(("State", "TracerPid"))]
                lines.append("%d %s %s %s\n" % (pid, tid, " ".join(said), " ".join(state)))
        except OSError:
            pass
    return "".join(lines)


def failing_allocator(directory):
    """The library that makes allocations fail, built."""
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "failalloc.c")
    library = os.path.join(directory, "failalloc.so")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def survey(args):
    """How often the pager and one agent make each system call while CMD runs: (kind, call) -> times."""
    command = [args.vswap, "run", "-m", args.limit, "--quiet"]
    command += ["--pool-max", args.pool_max] if args.pool_max else []
    seen = {}
    for kind in {"pager", "agent"} & {args.only or "pager", args.only or "agent"}:
        with tempfile.NamedTemporaryFile("r") as out:
            process = subprocess.Popen(command + ["--"] + args.command, stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, start_new_session=True)
            pager = wait_for_victim(process, "vswap-pager")[0]
            deadline = time.monotonic() + 10
            while kind == "agent" and not agents(process.pid) and time.monotonic() < deadline:
                time.sleep(0.01)
            target = pager if kind == "pager" else agents(process.pid)[0]
            follow = ["-f"] if kind == "pager" else []
            tracer = subprocess.Popen(["strace", "-qq", "-c", *follow, "-o", out.name, "-p", str(target)],
                                      stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            process.wait(4 * TIMEOUT)
            tracer.wait(TIMEOUT)
            for line in out.read().splitlines():
                words = line.split()
                if len(words) >= 5 and words[0].replace(".", "").isdigit() and words[-1] not in ("total", *NEVER):
                    seen[kind, words[-1]] = int(words[3])
    return seen


def sites(args):
    """The ways through the pager that lead to an allocation while CMD runs, as numbers."""
    with tempfile.NamedTemporaryFile("r") as log:
        environment = dict(os.environ, LD_PRELOAD=args.failalloc, FAIL_ALLOC="?", FAIL_ALLOC_LOG=log.name)
        command = [args.vswap, "run", "-m", args.limit, "--quiet"]
        command += ["--pool-max", args.pool_max] if args.pool_max else []
        subprocess.run(command + ["--"] + args.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       env=environment, timeout=4 * TIMEOUT, check=True)
        return sorted(set(log.read().split()))


def every(args):
    """All rounds of --every: (kind, call, error, when), or ("alloc", site)."""
    rounds = [("alloc", "@" + site) for site in sites(args)] if args.only in (None, "alloc") else []
    if args.only == "alloc":
        return rounds
    for (kind, call), times in sorted(survey(args).items()):
        times = min(times, 65535)  # strace counts no further
        rng = random.Random("%d %s %s" % (args.seed, kind, call))
        table = PAGER if kind == "pager" else AGENT
        whens = sorted({1, max(1, times // 2), rng.randint(1, max(1, times))})
        for error in [*table.get(call, OTHERS), "SIGKILL"]:
            rounds += [(kind, call, error, str(when)) for when in whens]
    return rounds


def disturb(rng, kind, pager, root, log):
    """Does it; returns what was done, and a tracer to be waited for, which tells in that file what it did."""
    if isinstance(kind, tuple):
        kind, call, error, when = kind
        deadline = time.monotonic() + 10
        targets = [pager] if kind == "pager" else agents(root)
        while not targets and time.monotonic() < deadline:
            time.sleep(0.01)
            targets = agents(root)
        if not targets:
            return "no agent yet", None
        return "%s %s %s when=%s" % (kind, call, error, when), strace(targets[0], (kind, call), error, when, log)
    if kind in ("pager", "agent"):
        table = PAGER if kind == "pager" else AGENT
        call = rng.choice(sorted(table))
        error = rng.choice(table[call])
        first = int(rng.paretovariate(0.4))
        when = "%d" % first if rng.random() < 0.7 else "%d+" % first
        if error in ("EINTR", "EAGAIN") and when.endswith("+"):
            when = "%d..%d" % (first, first + 50)
        targets = [pager] if kind == "pager" else agents(root)
        if not targets:
            return "no agent yet", None
        return "%s %s %s when=%s" % (kind, call, error, when), strace(rng.choice(targets), (kind, call), error, when)
    if kind == "memory":
        size = [int(line.split()[1]) for line in open("/proc/%d/status" % pager) if line.startswith("VmSize")][0]
        more = rng.choice([0, 64, 1024, 8192])
        resource.prlimit(pager, resource.RLIMIT_AS, ((size + more) * 1024,) * 2)
        return "pager: %d KiB of address space left" % more, None
    if kind == "files":
        count = len(os.listdir("/proc/%d/fd" % pager)) + rng.choice([0, 1, 3])
        resource.prlimit(pager, resource.RLIMIT_NOFILE, (count, count))
        return "pager: at most %d descriptors" % count, None
    victims = [pager] if rng.random() < 0.5 else sorted(tree(root))
    for pid in victims:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(rng.uniform(0.05, 0.5))
    for pid in victims:
        os.kill(pid, signal.SIGCONT)
    return "%d processes stopped for a moment" % len(victims), None


def one_round(args, rng, number, right, tally, kind=None):
    kind = kind or args.only or rng.choice(KINDS)
    systematic = isinstance(kind, tuple)
    name = kind if not systematic else "alloc/site" if kind[0] == "alloc" else "/".join(kind[:2])
    environment, number_at = dict(os.environ), "%d%s" % (10 ** rng.uniform(0, 5), rng.choice(["", "+"]))
    if systematic and kind[0] == "alloc":
        kind, number_at = kind
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.NamedTemporaryFile("r") as log:
        if kind == "alloc":
            environment.update(LD_PRELOAD=args.failalloc, FAIL_ALLOC=number_at, FAIL_ALLOC_LOG=log.name)
        command = [args.vswap, "run", "-m", args.limit, "--quiet"]
        command += ["--pool-max", args.pool_max] if args.pool_max else []
        process = subprocess.Popen(command + ["--"] + args.command, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                   start_new_session=True, env=environment)
        victim = wait_for_victim(process, "vswap-pager")
        tracer = None
        done = "it ended too early"
        if kind == "alloc":
            done = "pager: allocation %s fails" % number_at
        elif victim:
            time.sleep(0 if isinstance(kind, tuple) else rng.uniform(0, args.after))
            try:
                done, tracer = disturb(rng, kind, victim[0], process.pid, log.name if systematic else "/dev/null")
            except (ProcessLookupError, FileNotFoundError):
                pass
        problem = None
        try:
            status = process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            problem, status = "it hangs:\n%sinjected: %s" % (standing(process.pid), log.read()), None
        if tracer:
            tracer.send_signal(signal.SIGTERM)
            said = tracer.communicate()[1].decode(errors="replace").strip()
            if "invalid" in said or "Invalid" in said:
                problem = "strace: " + said
        # What a program leaves that was not ended by vswap goes on to its end.
        deadline = time.monotonic() + (2 if status == 125 else 30)
        while True:
            left = {p: s for p, s in processes().items() if s[3] == process.pid and s[1] != "Z"}
            if not left or time.monotonic() > deadline:
                break
            time.sleep(0.01)
        if left and problem is None:
            problem = "still there: %s" % ", ".join("%s (%d)" % (s[0], p) for p, s in left.items())
        for pid, s in left.items():
            if alive(pid, s[4]):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        out.seek(0)
        err.seek(0)
        text, errors = out.read(), err.read().decode(errors="replace")
        if "WRONG" in errors or b"WRONG" in text:
            problem = "a wrong byte"
        elif status == 0 and text != right:
            problem = "status 0 and wrong output"
        elif status == 125 and "vswap:" not in errors:
            problem = problem or "125 without a word"
        elif status not in (0, 125, 137, None):
            problem = problem or "status %s" % status
        outcome = {0: "right", 125: "ended by vswap", 137: "killed"}.get(status, "?")
        told = log.read()
        if systematic and status == 0 and "INJECTED" not in told and "failed" not in told:
            outcome = "not reached"
        tally[name, outcome] += 1
        print("round %d: %s: %s%s" % (number, done, outcome, "" if status != 125 else ": " + errors.strip().splitlines()[-1]), file=sys.stderr)
        return problem and "%s (%s); vswap said: %s" % (problem, done, errors.strip())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--vswap", required=True)
    parser.add_argument("--limit", required=True)
    parser.add_argument("--pool-max")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--every", action="store_true")
    parser.add_argument("--from", type=int, default=0, dest="first")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--after", type=float, default=1.5, help="seconds at most before it happens")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    libraries = tempfile.TemporaryDirectory()
    args.failalloc = failing_allocator(libraries.name)
    plain = subprocess.run(args.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
    tally = collections.Counter()
    kinds = every(args) if args.every else [None] * args.rounds
    print("%d rounds" % len(kinds), file=sys.stderr)
    begun = time.monotonic()
    for number, kind in list(enumerate(kinds))[args.first:]:
        if args.seconds and time.monotonic() - begun > args.seconds:
            print("out of time: go on with --from %d" % number, file=sys.stderr)
            break
        rng = random.Random("%d %d" % (args.seed, number))
        problem = one_round(args, rng, number, plain.stdout, tally, kind)
        if problem:
            print("inject: WRONG round %d of seed %d: %s" % (number, args.seed, problem), file=sys.stderr)
            sys.exit(1)
    for (kind, outcome), count in sorted(tally.items()):
        print("%-24s %-16s %d" % (kind, outcome, count))


if __name__ == "__main__":
    main()
