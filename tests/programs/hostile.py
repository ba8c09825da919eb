"""A hostile part of a tree: it knows all that its agent knows, and says what it likes at the pager's socket.

    hostile.py tree VSWAP  honest workers, whose pages are evicted by `VSWAP reclaim`, and attackers beside them; prints
                           "right" if the workers' data stayed so
    hostile.py gate        the same, but for calls at the gate
    hostile.py NAME        one attacker

Attackers may fail as they like, but for the thief: it must be heard, and refused (exit status 3: it got the child's
descriptor; 4: the child was hurt; 5: it was never heard).
"""
import array
import ctypes
import fcntl
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib

PAGE = 4096
BATCH = 128
RING = BATCH + 1
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_size_t] * 6
libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = [ctypes.c_size_t] * 4
RUN = os.environ["VSWAP_SESSION"].split(":", 1)[1]


def secret():
    image = open(RUN + "/agent.so", "rb").read()
    at = image.index(b"\x9a\xfevswap-agent-\xc3\x01")
    return image[at + 128 : at + 144]


def connect():
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stream.settimeout(5)
    stream.connect(RUN + "/pager")
    return stream


def send(stream, packet, fds=()):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    stream.sendmsg([packet], rights)


def anonymous(pages, rights=3):
    return libc.mmap(0, pages * PAGE, rights, 0x22, 2**64 - 1, 0)


def greeting(token=0, forked=0, key=None, beacon=None, area=None):
    area = area or anonymous(BATCH + 40)
    body = struct.pack("<IIIIQ", 0x76730001, 1, forked, os.getpid(), token) + (key or secret())
    end = area + (BATCH + 40) * PAGE
    return body + struct.pack("<QQQQI", area, end, area + PAGE, beacon or anonymous(1), RING)


def ring(pages=RING, sealed=True):
    file = os.memfd_create("ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(file, pages * PAGE)
    if sealed:
        fcntl.fcntl(file, 1033, 1 | 2 | 4)
    return file


def userfaultfd(flags=os.O_CLOEXEC | os.O_NONBLOCK):
    file = libc.syscall(323, flags)
    assert file >= 0, os.strerror(ctypes.get_errno())
    return file


def agent():
    """Greets as an honest agent does, and is welcome."""
    stream, uffd = connect(), userfaultfd()
    send(stream, greeting(), [uffd, ring()])
    assert struct.unpack("<III", stream.recv(64))[1] == 1, "not welcome"
    return stream, uffd


def started(tid=None):
    return struct.pack("<II", 0x76730021, tid or os.getpid())


def evicted(moved=(0, 0), again=0, errno=0, emptied=1):
    return struct.pack("<IQQIII", 0x76730022, *moved, again, errno, emptied)


def called(result):
    return struct.pack("<Iq", 0x76730023, result)


def fat(mib=6):
    """Memory that the pager would like to evict."""
    return [bytes([i % 251]) * PAGE for i in range(mib * 256)]


# Attackers.


def garbage():
    chance = random.Random(1)
    heads = [b"", struct.pack("<II", 0x76730001, 1), struct.pack("<II", 0x76730002, 1), greeting()]
    for _ in range(300):
        packet = bytearray(chance.choice(heads) + chance.randbytes(chance.randrange(1, 120)))
        if chance.random() < 0.5:
            packet = bytearray(greeting())
            packet[chance.randrange(len(packet))] ^= 1 << chance.randrange(8)
        stream = connect()
        send(stream, bytes(packet), [0, 1, 2][: chance.randrange(4)])


def crowd():
    crowd = [connect() for _ in range(600)]
    time.sleep(60)
    del crowd


def refusals():
    body = struct.pack("<IIIIQ", 0x76730002, 1, 0, os.getpid(), 0) + secret()
    for _ in range(600):
        try:
            send(connect(), body + struct.pack("<II", 2, 12))
        except BlockingIOError:  # too many wait to be taken in
            pass


def descriptors():
    pipe, file = os.pipe()[0], os.open("/proc/self/exe", os.O_RDONLY)
    rings = [pipe, file, ring(4), ring(sealed=False), userfaultfd()]
    for kind in [pipe, file, ring(), os.open("/dev/null", os.O_RDWR), connect().fileno()]:
        send(connect(), greeting(), [kind, ring()])
    for kind in rings:
        send(connect(), greeting(), [userfaultfd(), kind])
    os.ftruncate(rings[3], 0)
    send(connect(), greeting(), [ring()])
    send(connect(), greeting(token=7, forked=1), [userfaultfd(), ring()])
    for _ in range(50):
        send(connect(), greeting(), [userfaultfd(), ring()])


def silent():
    stream, _ = agent()
    memory = fat()
    time.sleep(60)
    del stream, memory


def deaf():
    """Neither reads nor can be read from without waiting."""
    stream, uffd = agent()
    send(stream, started())
    memory = fat()
    fcntl.fcntl(uffd, fcntl.F_SETFL, 0)
    for _ in range(100000):
        try:
            send(stream, called(0))
        except OSError:
            break
    time.sleep(60)
    del memory


def liar():
    """An answer of each kind that no honest agent gives, to whatever it was asked."""
    chance = random.Random(2)
    answers = [
        lambda: evicted((2**64 - 1, 2**64 - 1)) * 2,
        lambda: called(chance.randrange(-(2**63), 2**63)),
        lambda: evicted(errno=-1),
        lambda: chance.randbytes(chance.randrange(1, 1000)),
        lambda: evicted(emptied=0),
        started,
    ]
    memory = fat()
    for answer in answers:
        stream, _ = agent()
        send(stream, started())
        stream.settimeout(0.7)
        try:
            stream.recv(2048)
            for _ in range(20):
                send(stream, answer())
        except OSError:
            pass
    del memory


def claim(token, area):
    """Whether the pager heard the claim, and refused it; the other attackers may keep it from being heard."""
    try:
        stream = connect()
        send(stream, greeting(token, 1, area=area), [ring()])
        packet, rights, _, _ = stream.recvmsg(64, 64)
    except OSError:
        return False
    if rights or (packet and struct.unpack("<III", packet)[1]):
        os._exit(3)
    return bool(packet)


def thief():
    """Claims the address space of a child of a fork, with the token that the child was given."""
    memory = fat()
    sums = [zlib.crc32(page) for page in memory]
    places = open("/proc/self/smaps").read().split("VmFlags:")
    wiped = [block for block, flags in zip(places, places[1:]) if " wf" in flags.splitlines()[0]]
    mapping = [line for line in wiped[0].splitlines() if "-" in line.split()[0]][-1]
    beacon = int(mapping.split("-")[0], 16)
    area, deadline = anonymous(BATCH + 40), time.monotonic() + 120
    while time.monotonic() < deadline:
        tokens, go = os.pipe(), os.pipe()
        child = libc.syscall(57)
        if child == 0:
            os.close(go[1])
            os.write(tokens[1], struct.pack("<Q", ctypes.c_uint64.from_address(beacon).value))
            os.read(go[0], 1)
            os._exit(0 if [zlib.crc32(page) for page in memory] == sums else 1)
        token = struct.unpack("<Q", os.read(tokens[0], 8))[0]
        refused = token and claim(token, area)
        os.write(go[1], b"x")
        if os.waitpid(child, 0)[1] != 0:
            os._exit(4)
        if refused:
            return
        for end in tokens + go:
            os.close(end)
        time.sleep(0.1)
    os._exit(5)


def hostage():
    """Has calls wait for an agent that never executes them."""
    stream, _ = agent()
    for _ in range(8):
        area = anonymous(16)
        threading.Thread(target=libc.mremap, args=(area, 16 * PAGE, 32 * PAGE, 1), daemon=True).start()
    print("ready", flush=True)
    time.sleep(60)
    del stream


def deserter():
    """Its agent leaves in the middle of a call that it was asked to execute: that call fails, and later ones are made without."""
    stream, (waits, begins) = connect(), os.pipe()
    stream.settimeout(None)
    if os.fork() == 0:
        # Another process: it must not wait for a page itself.
        os.read(waits, 1)
        while stream.recv(4096)[0] != 0x12:
            send(stream, evicted())
        os._exit(0)
    send(stream, greeting(), [userfaultfd(), ring()])
    assert struct.unpack("<III", stream.recv(64))[1] == 1, "not welcome"
    send(stream, started())
    os.write(begins, b"x")
    stream.close()
    memory, area, results = fat(), anonymous(64), []
    ctypes.memset(area, 1, 64 * PAGE)
    subprocess.run([sys.argv[2], "reclaim", "1M", "--pid", str(os.getpid())], stdout=subprocess.DEVNULL)

    def call():
        results.append(libc.mremap(area, 64 * PAGE, 64 * PAGE, 1))
        # What is touched for the first time again is a page that it waits for.
        libc.madvise(ctypes.c_size_t(area), ctypes.c_size_t(64 * PAGE), 4)
        libc.memset(ctypes.c_size_t(area), 2, ctypes.c_size_t(64 * PAGE))
        results.append(0)

    for _ in range(2):
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(8)
    os._exit(0 if len(results) == 4 and memory else 6)


# The tree.


def worker():
    """Holds pages, and reads them all again and again until its standard input ends."""
    pages = [random.Random(i).randbytes(PAGE // 2) * 2 for i in range(5120)]
    sums = [zlib.crc32(page) for page in pages]
    print("ready", flush=True)
    done = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
    rounds = 0
    while rounds < 2 or not done.is_set():
        assert [zlib.crc32(page) for page in pages] == sums, "wrong data"
        rounds += 1
    os._exit(0)


def mover():
    """Moves its memory at the gate."""
    area = anonymous(16)
    ctypes.memset(area, 7, 16 * PAGE)
    for size in range(17, 117):
        area = libc.mremap(area, (size - 1) * PAGE, size * PAGE, 1)
    assert ctypes.string_at(area, 16 * PAGE) == b"\7" * 16 * PAGE, "wrong data"


def keep_others_out():
    """Sets a system-call filter that allows everything: into a process with one of its own no agent is put by ptrace."""
    allow = ctypes.create_string_buffer(struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000))
    program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", 1, ctypes.addressof(allow)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0


def start(name, **more):
    environment = dict(os.environ)
    if name in ("silent", "deaf", "liar", "hostage", "deserter"):
        del environment["LD_PRELOAD"]  # it is its own agent, and stays the only one
        more["preexec_fn"] = keep_others_out
    return subprocess.Popen([sys.executable, __file__, name, *sys.argv[2:]], env=environment, **more)


def tree():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    workers = [start("worker", **pipes) for _ in range(2)]
    for honest in workers:
        assert honest.stdout.read(6) == b"ready\n"
    names = ["garbage", "crowd", "refusals", "descriptors", "silent", "deaf", "liar", "thief"]
    attackers = {name: start(name, stderr=None if name == "thief" else subprocess.DEVNULL) for name in names}
    going = [attackers[name] for name in ("thief", "garbage", "refusals", "descriptors", "liar")]
    while any(attacker.poll() is None for attacker in going):
        subprocess.run([sys.argv[2], "reclaim", "24M"], stdout=subprocess.DEVNULL)
    assert going[0].returncode == 0, f"the thief: {going[0].returncode}"
    for honest in workers:
        honest.stdin.close()
    assert [honest.wait() for honest in workers] == [0, 0], "an honest process was hurt"
    for attacker in attackers.values():
        attacker.kill()
        attacker.wait()
    # New processes come in as before.
    assert subprocess.run(["true"]).returncode == 0
    print("right")


def gate():
    hostages = start("hostage", stdout=subprocess.PIPE)
    assert hostages.stdout.read(6) == b"ready\n"
    assert [mover.wait() for mover in [start("mover") for _ in range(3)]] == [0, 0, 0]
    assert start("deserter").wait() == 0, "who leaves in the middle of a call waits for ever"
    hostages.kill()
    hostages.wait()
    print("right")


globals()[sys.argv[1]]()
