#!/usr/bin/env python3
"""Forks with data in memory: children and grandchildren verify what they inherited while everybody writes.

    forks.py MIB [--rounds N]

Uses os.fork, multiprocessing (fork), subprocess (vfork or posix_spawn) and chains of exec. The output depends
on the arguments alone; the exit status is 1 at the first wrong byte, and standard error says where; 137 if a child was killed.
"""

import concurrent.futures
import concurrent.futures.process
import hashlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys

BLOCK = 64 * 1024


def make_block(seed):
    rng = random.Random(seed)
    line = ("block %d " % seed + " ".join(str(rng.randrange(10**6)) for _ in range(40))).encode()
    body = line * (BLOCK // len(line) // 2 + 1)
    return bytearray((body[: BLOCK // 2] + rng.randbytes(BLOCK // 4)).ljust(BLOCK, b"\0"))


def digest(block):
    return hashlib.blake2b(block, digest_size=8).digest()


class Store:
    def __init__(self, mib):
        self.blocks = [make_block(i) for i in range(mib * 16)]
        self.sums = [digest(b) for b in self.blocks]

    def verify(self, who):
        for i, (b, s) in enumerate(zip(self.blocks, self.sums)):
            if digest(b) != s:
                again = digest(b) == s
                zero = sum(not any(b[k : k + 4096]) for k in range(0, BLOCK, 4096))
                print("forks: WRONG %s pid %d block %d: %d of 16 pages are zero, right when read again: %s" % (who, os.getpid(), i, zero, again), file=sys.stderr)
                sys.stderr.flush()
                os._exit(1)

    def rewrite(self, rng, share):
        for i in rng.sample(range(len(self.blocks)), int(len(self.blocks) * share)):
            b = self.blocks[i]
            at = rng.randrange(BLOCK - 8)
            b[at : at + 8] = rng.randbytes(8)
            self.sums[i] = digest(b)


STORE = None
KILLED = 137


def was_killed(status):
    """Whether a child, or one of its own, was killed, as the whole of a tree may be: of that it is not to blame."""
    return os.waitstatus_to_exitcode(status) in (-signal.SIGKILL, KILLED)


def in_pool(task):
    """A worker of a multiprocessing pool: hashes blocks that it inherited."""
    first, last = task
    return [digest(b) for b in STORE.blocks[first:last]]


def child(store, rng, depth):
    store.verify("child at depth %d" % depth)
    store.rewrite(rng, 0.1)
    if depth < 2 and rng.random() < 0.7:
        pid = os.fork()
        if pid == 0:
            child(store, rng, depth + 1)
        store.rewrite(rng, 0.1)
        status = os.waitpid(pid, 0)[1]
        if status != 0:
            os._exit(KILLED if was_killed(status) else 1)
    store.verify("child at depth %d, later" % depth)
    if rng.random() < 0.3:
        os.execv("/bin/sh", ["sh", "-c", "exec sh -c 'exec true'"])
    os._exit(0)


def main():
    global STORE
    args = [a for a in sys.argv[1:] if not a.startswith("--")]
    mib = int(args[0]) if args else 128
    rounds = int(sys.argv[sys.argv.index("--rounds") + 1]) if "--rounds" in sys.argv else 6
    rng = random.Random(7)
    STORE = store = Store(mib)
    for _ in range(rounds):
        pids = []
        for _ in range(2):
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                child(store, random.Random(rng.random()), 0)
            pids.append(pid)
            store.rewrite(rng, 0.2)
        ends = [(pid, os.waitpid(pid, 0)[1]) for pid in pids]
        if any(was_killed(status) for _, status in ends):
            sys.exit(KILLED)
        for pid, status in ends:
            if status != 0:
                print("forks: WRONG child %d ended with status %#x" % (pid, status), file=sys.stderr)
                sys.exit(1)
        pipeline = ["bash", "-o", "pipefail", "-c", "cat | wc -c"]
        done = subprocess.run(pipeline, input=bytes(store.blocks[0]) * 4, stdout=subprocess.PIPE)
        if done.returncode in (-signal.SIGKILL, KILLED):
            sys.exit(KILLED)
        text = done.stdout if done.returncode == 0 else b"-1"
        if int(text) != 4 * BLOCK:
            print("forks: WRONG a pipeline saw %s bytes" % text, file=sys.stderr)
            sys.exit(1)
        store.verify("parent")
    step = max(1, len(store.blocks) // 16)
    tasks = [(k, min(k + step, len(store.blocks))) for k in range(0, len(store.blocks), step)]
    try:
        with concurrent.futures.ProcessPoolExecutor(3, multiprocessing.get_context("fork")) as pool:
            got = [s for part in pool.map(in_pool, tasks) for s in part]
    except concurrent.futures.process.BrokenProcessPool:
        sys.exit(KILLED)
    if got != store.sums:
        print("forks: WRONG sums from the pool: %d differ" % sum(a != b for a, b in zip(got, store.sums)), file=sys.stderr)
        sys.exit(1)
    store.verify("parent at the end")
    print("forks: %d MiB, %d rounds, %s ok" % (mib, rounds, hashlib.blake2b(b"".join(store.sums), digest_size=8).hexdigest()))


if __name__ == "__main__":
    main()
