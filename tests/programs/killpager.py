#!/usr/bin/env python3
"""Kills the pager at a random moment: every program must be gone within a second (--within), and nothing may be wrong before.

    killpager.py --vswap PATH --limit SIZE [--rounds N] [--seed N] [--victim pager|guardian] [--after LOW:HIGH]
                 [--within SECONDS] -- CMD…

Each round starts CMD under vswap, waits a random time (seconds, counted from the moment the pager exists),
and sends SIGKILL to it. Then every program of the tree must have disappeared in time (vswap's own processes, which
give the spill file back, within ten), vswap must have failed, CMD must not have printed WRONG, nor, having been killed, have reported success.
With --victim guardian the guardian is killed and nothing is asked but that no byte is wrong.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

OURS_WITHIN = 10.0


def stat(pid):
    """(comm, state, ppid, session, start time), or None when there is no such process."""
    try:
        with open("/proc/%d/stat" % pid) as f:
            line = f.read()
    except OSError:
        return None
    comm = line[line.index("(") + 1 : line.rindex(")")]
    rest = line[line.rindex(")") + 2 :].split()
    return comm, rest[0], int(rest[1]), int(rest[3]), int(rest[19])


def processes():
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            s = stat(int(name))
            if s:
                found[int(name)] = s
    return found


def tree(root):
    """Every live process that descends from root or shares its session: pid -> (comm, start time)."""
    all_of_them = processes()
    members = {root} | {p for p, s in all_of_them.items() if s[3] == root}
    while True:
        more = {p for p, s in all_of_them.items() if s[2] in members} - members
        if not more:
            break
        members |= more
    return {p: (all_of_them[p][0], all_of_them[p][4]) for p in members if p in all_of_them and all_of_them[p][1] != "Z"}


def alive(pid, start):
    s = stat(pid)
    return s is not None and s[4] == start and s[1] != "Z"


def start(args, out, err):
    command = [args.vswap, "run", "-m", args.limit, "--quiet", "--"] + args.command
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True)


def wait_for_victim(process, name):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for pid, (comm, begun) in tree(process.pid).items():
            if comm == name:
                return pid, begun
        if process.poll() is not None:
            return None
        time.sleep(0.002)
    return None


def one_round(args, rng, number):
    """None, or what went wrong."""
    low, high = (float(x) for x in args.after.split(":"))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = start(args, out, err)
        victim = wait_for_victim(process, "vswap-" + args.victim)
        if victim is None:
            process.kill()
            process.wait()
            err.seek(0)
            return "no process named vswap-%s appeared; vswap said: %s" % (args.victim, err.read().decode(errors="replace").strip())
        wait = rng.uniform(low, high)
        time.sleep(wait)
        before = tree(process.pid)
        ended = process.poll() is not None
        if alive(*victim):
            os.kill(victim[0], signal.SIGKILL)
        killed = time.monotonic()
        problem = gone = None
        if args.victim == "pager" and not ended:
            # A process forked between the snapshot and the kill is found through the session.
            while True:
                left = {p: c for p, (c, s) in before.items() if p != process.pid and alive(p, s)}
                left.update({p: s[0] for p, s in processes().items() if s[3] == process.pid and p != process.pid and s[1] != "Z"})
                programs = [p for p, c in left.items() if not c.startswith("vswap-")]
                if not programs and gone is None:
                    gone = time.monotonic() - killed
                if not left and process.poll() is not None:
                    break
                within = args.within if programs else OURS_WITHIN
                if time.monotonic() - killed > within:
                    problem = "%.1f s after the kill still there: %s" % (
                        within, ", ".join("%s (%d)" % (c, p) for p, c in sorted(left.items())) or "vswap itself")
                    break
                time.sleep(0.002)
        try:
            status = process.wait(30 if args.victim == "pager" else 600)
        except subprocess.TimeoutExpired:
            problem = problem or "vswap did not end"
            status = None
        for pid, (_, begun) in list(before.items()) + list(tree(process.pid).items()):
            if alive(pid, begun):
                os.kill(pid, signal.SIGKILL)
        out.seek(0)
        err.seek(0)
        text, errors = out.read().decode(errors="replace"), err.read().decode(errors="replace")
        if "WRONG" in text + errors:
            problem = "a wrong byte: " + errors
        elif args.victim == "pager" and not ended and status == 0:
            problem = problem or "vswap returned 0 although its pager was killed"
        if gone is not None:
            print("round %d: killed after %.2f s, %d processes gone in %.3f s, status %s" % (number, wait, len(before), gone, status), file=sys.stderr)
        return problem


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--vswap", required=True)
    parser.add_argument("--limit", required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--victim", choices=["pager", "guardian"], default="pager")
    parser.add_argument("--after", default="0:3")
    parser.add_argument("--within", type=float, default=1)
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    for number in range(args.rounds):
        problem = one_round(args, rng, number)
        if problem:
            print("killpager: WRONG round %d of seed %d: %s" % (number, args.seed, problem), file=sys.stderr)
            sys.exit(1)
    print("killpager: %d rounds ok" % args.rounds)


if __name__ == "__main__":
    main()
