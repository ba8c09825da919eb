#!/usr/bin/env python3
"""Fills redis-server, verifies every key, saves in the background while writing, verifies again, shuts down.

    redis.py MIB [PREFIX…]      e.g.  redis.py 300 vswap run -m 200M --

The server listens on a Unix socket in a private directory. PREFIX runs the server, not this client.
"""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

VALUE = 1000
BATCH = 200


class Client:
    """Enough of the Redis protocol to pipeline SET and GET."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(120)
        self.sock.connect(path)
        self.file = self.sock.makefile("rb", 1 << 20)

    @staticmethod
    def encode(*args):
        parts = [b"*%d\r\n" % len(args)]
        for a in args:
            a = a if isinstance(a, bytes) else str(a).encode()
            parts.append(b"$%d\r\n%s\r\n" % (len(a), a))
        return b"".join(parts)

    def answer(self):
        line = self.file.readline()
        if not line:
            raise EOFError("redis-server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            n = int(rest)
            return None if n < 0 else self.file.read(n + 2)[:-2]
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))]
        if kind == b"-":
            raise RuntimeError(rest.decode())
        return int(rest) if kind == b":" else rest

    def many(self, commands):
        self.sock.sendall(b"".join(self.encode(*c) for c in commands))
        return [self.answer() for _ in commands]

    def one(self, *args):
        return self.many([args])[0]


def value(key, version):
    """Half of it text, the rest random: it compresses by about two."""
    rng = random.Random(key * 31 + version)
    head = b"key %d version %d " % (key, version)
    return (head * (VALUE // 2 // len(head)) + rng.randbytes(VALUE * 45 // 100)).ljust(VALUE, b".")


def wrong(text):
    print("redis.py: WRONG " + text, file=sys.stderr)
    sys.exit(1)


def fill(client, keys, versions, version):
    for k in range(0, len(keys), BATCH):
        part = keys[k : k + BATCH]
        client.many([("SET", "key:%d" % i, value(i, version)) for i in part])
        for i in part:
            versions[i] = version


def verify(client, keys, versions, when):
    for k in range(0, len(keys), BATCH):
        part = keys[k : k + BATCH]
        for i, got in zip(part, client.many([("GET", "key:%d" % i) for i in part])):
            if got != value(i, versions[i]):
                again = client.one("GET", "key:%d" % i) == value(i, versions[i])
                wrong("%s: key %d version %d: got %r… right when read again: %s" % (when, i, versions[i], (got or b"")[:40], again))


def info(client, section, field):
    for line in client.one("INFO", section).decode().splitlines():
        if line.startswith(field + ":"):
            return line.split(":", 1)[1]
    return ""


def session(client, mib):
    keys = list(range(mib * 1024 * 1024 // (VALUE + 150)))
    versions = [0] * len(keys)
    rng = random.Random(5)
    fill(client, keys, versions, 1)
    verify(client, keys, versions, "after filling")
    shuffled = keys[:]
    rng.shuffle(shuffled)
    verify(client, shuffled, versions, "in random order")
    client.one("BGSAVE")
    fill(client, shuffled[: len(keys) // 4], versions, 2)  # every write copies a page that the child still needs
    while info(client, "persistence", "rdb_bgsave_in_progress") == "1":
        verify(client, rng.sample(keys, BATCH), versions, "while saving")
    if info(client, "persistence", "rdb_last_bgsave_status") != "ok":
        wrong("BGSAVE failed")
    verify(client, keys, versions, "after saving")
    # Saved in the foreground and loaded again, the file is verified as well.
    client.one("CONFIG", "SET", "save", "")
    client.one("SAVE")
    client.one("DEBUG", "RELOAD", "NOSAVE")
    verify(client, keys, versions, "after reloading")
    if client.one("DBSIZE") != len(keys):
        wrong("number of keys")
    return len(keys)


def with_server(prefix, use):
    """Starts a server, lets `use` have a client of it, and shuts it down."""
    server = shutil.which("redis-server")
    if not server:
        sys.exit("redis-server is not installed (package redis-server)")
    directory = tempfile.mkdtemp(prefix="vswap-redis-")
    path = os.path.join(directory, "redis.sock")
    options = ["--port", "0", "--unixsocket", path, "--dir", directory, "--save", "", "--appendonly", "no",
               "--daemonize", "no", "--loglevel", "warning", "--timeout", "0"]
    version = subprocess.run([server, "--version"], stdout=subprocess.PIPE, check=True).stdout
    if int(re.search(rb"v=(\d+)", version).group(1)) >= 7:
        options += ["--enable-debug-command", "yes"]  # for DEBUG RELOAD; older servers always allow it
    process = subprocess.Popen(prefix + [server] + options, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                client = Client(path)
                break
            except OSError:
                if process.poll() is not None:
                    wrong("redis-server ended with status %d" % process.returncode)
                if time.monotonic() > deadline:
                    wrong("redis-server does not answer after 30 s")
                time.sleep(0.02)
        use(client)
        client.sock.sendall(Client.encode("SHUTDOWN", "NOSAVE"))
        status = process.wait(60)
        if status != 0:
            wrong("redis-server ended with status %d" % status)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(directory, ignore_errors=True)


def main():
    mib = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    counts = []
    with_server(sys.argv[2:], lambda client: counts.append(session(client, mib)))
    print("redis.py: %d keys ok" % counts[0])


if __name__ == "__main__":
    main()
