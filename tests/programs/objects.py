#!/usr/bin/env python3
"""Builds MiB megabytes of Python objects, walks them twice, and prints a hash of what it read.

    objects.py MIB [--seed N]

The mixture is what services hold: records (dicts of strings, numbers and lists), text, parsed numbers,
and a tenth of incompressible bytes. The output depends on the arguments alone.
"""

import hashlib
import random
import sys
import time

WORDS = (
    "account active address amount balance batch begin build cache carrier change city client cluster code commit "
    "count country created currency customer delta device driver email entry error event field filter first folder "
    "group header history index invoice item kernel label last latency limit list location memory message method "
    "metric name node note number offset order owner page parent payment phone policy price process product query "
    "queue range record region reply request result retry route schema score section segment server session shard "
    "signal size source stage state status store street string swap table target thread time token total trace type "
    "update user value vector version view volume window worker zone"
).split()


def text(rng, size):
    """Sentences of about `size` bytes."""
    n = size // 7
    return " ".join(rng.choices(WORDS, k=n))


def record(rng, i):
    return {
        "id": i,
        "name": rng.choice(WORDS).title() + " " + rng.choice(WORDS).title() + str(i),
        "email": "%s.%d@example.org" % (rng.choice(WORDS), i),
        "score": rng.random(),
        "tags": rng.choices(WORDS, k=6),
        "history": [rng.randrange(1 << 30) for _ in range(8)],
        "note": text(rng, 300),
    }


def chunk(rng, i):
    """About one MiB of objects."""
    return {
        "records": [record(rng, i * 400 + k) for k in range(400)],
        "pages": [text(rng, 4000).encode() for _ in range(40)],
        "log": "\n".join("2026-03-%02d %s %s=%d" % (k % 28 + 1, rng.choice(WORDS), rng.choice(WORDS), rng.randrange(9999)) for k in range(2000)),
        "floats": [k * 0.5 + i for k in range(3000)],
        "noise": rng.randbytes(100 * 1024),
        "zeros": bytearray(60 * 1024),
    }


def walk(store, order):
    digest = hashlib.blake2b(digest_size=16)
    for i in order:
        c = store[i]
        for r in c["records"]:
            digest.update(r["name"].encode())
            digest.update(r["note"].encode())
            digest.update(b"%d %d %.12f" % (r["id"], sum(r["history"]), r["score"]))
            digest.update(",".join(r["tags"]).encode())
        for p in c["pages"]:
            digest.update(p)
        digest.update(c["log"].encode())
        digest.update(b"%.3f" % sum(c["floats"]))
        digest.update(c["noise"])
        digest.update(c["zeros"])
        c["zeros"][i % len(c["zeros"])] = (c["zeros"][i % len(c["zeros"])] + 1) % 256
    return digest.hexdigest()


def main():
    args = [a for a in sys.argv[1:] if not a.startswith("--")]
    seed = int(sys.argv[sys.argv.index("--seed") + 1]) if "--seed" in sys.argv else 1
    mib = int(args[0]) if args else 1024
    rng = random.Random(seed)
    started = time.monotonic()
    store = [chunk(rng, i) for i in range(mib * 100 // 103)]
    built = time.monotonic()
    first = walk(store, range(len(store)))
    order = list(range(len(store)))
    rng.shuffle(order)
    walked = time.monotonic()
    second = walk(store, order)
    done = time.monotonic()
    print("objects: %d MiB first %s second %s" % (mib, first, second))
    print("objects: build %.2f s, walk %.2f s, shuffled walk %.2f s" % (built - started, walked - built, done - walked), file=sys.stderr)


if __name__ == "__main__":
    main()
