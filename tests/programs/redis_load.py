#!/usr/bin/env python3
"""Loads redis-server as clients do: fills it, then asks one request at a time, with Zipf-distributed keys, a tenth writes.

    redis_load.py MIB REQUESTS [PREFIX…]      e.g.  redis_load.py 300 60000 vswap run -m 200M --

Every value that comes back is compared. Prints a line that depends on the arguments alone, and on standard error a line
of JSON: seconds of the requests, and percentiles of how long one took.
"""

import bisect
import itertools
import json
import random
import sys
import time

import redis


def zipf(rng, count, exponent=0.99):
    """An endless sequence of numbers below `count`; the ranks are scattered."""
    sums = list(itertools.accumulate(1 / i**exponent for i in range(1, count + 1)))
    order = list(range(count))
    rng.shuffle(order)
    while True:
        yield order[min(bisect.bisect_left(sums, rng.random() * sums[-1]), count - 1)]


def load(client, mib, requests):
    rng = random.Random(7)
    count = mib * 1024 * 1024 // (redis.VALUE + 150)
    keys, versions = list(range(count)), [0] * count
    redis.fill(client, keys, versions, 1)
    times = []
    begun = time.perf_counter()
    for number, key in enumerate(itertools.islice(zipf(rng, count), requests)):
        if number % 10 == 0:
            versions[key] = 2
            request = ("SET", "key:%d" % key, redis.value(key, 2))
        else:
            request = ("GET", "key:%d" % key)
        sent = time.perf_counter_ns()
        answer = client.one(*request)
        times.append(time.perf_counter_ns() - sent)
        if request[0] == "GET" and answer != redis.value(key, versions[key]):
            redis.wrong("key %d version %d: got %r…" % (key, versions[key], (answer or b"")[:40]))
    seconds = time.perf_counter() - begun
    times.sort()
    at = lambda share: times[min(int(len(times) * share), len(times) - 1)]
    figures = {"access_s": round(seconds, 4), "p50_ns": at(0.5), "p99_ns": at(0.99), "p999_ns": at(0.999)}
    print("redis_load.py: %d keys, %d requests ok" % (count, requests))
    print(json.dumps(figures), file=sys.stderr)


def main():
    mib, requests, prefix = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    redis.with_server(prefix, lambda client: load(client, mib, requests))


if __name__ == "__main__":
    main()
