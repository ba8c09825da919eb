#!/bin/bash
# Hundreds of short processes from a shell that has much in memory.
#
#   forks.sh MIB [PROCESSES]
#
# The shell keeps an array of MIB megabytes; every command substitution is a fork that inherits it. The output
# depends on the arguments alone.
set -u
export LC_ALL=C
mib=${1:-32} processes=${2:-300}
fail() { echo "forks.sh: WRONG $*" >&2; exit 1; }

declare -a lines
make() { # a line of about 1 KiB that its number determines
    local s="line $1:" k
    for k in {1..18}; do s+=" $((($1 * 7919 + k * 104729) % 1000003)) the quick brown fox jumps over a lazy dog no $k"; done
    made=$s
}
count=$((mib * 900))
for ((i = 0; i < count; i++)); do make $i; lines[i]=$made; done

for ((n = 0; n < processes; n++)); do
    i=$(((n * 6151) % count))
    make $i
    case $((n % 5)) in
    0) got=$(printf %s "${lines[i]}") ;;
    1) got=$(printf %s "${lines[i]}" | cat) ;;
    2) got=$(echo "${lines[i]}" | sed -e 's/fox/FOX/g' | sed -e 's/FOX/fox/g') ;;
    3) got=$( (exec awk '{ print }' <<<"${lines[i]}") ) ;;
    4) got=$(echo "$(echo "$(echo "${lines[i]}")")") ;; # grandchildren
    esac
    [ "$got" = "$made" ] || fail "line $i through process $n: ${got:0:60}"
    lines[i]=$got
done
sum=$(printf '%s\n' "${lines[@]}" | cksum)
for ((i = 0; i < count; i += 7)); do make $i; [ "${lines[i]}" = "$made" ] || fail "line $i at the end"; done
echo "forks.sh: $count lines, $processes processes, cksum $sum ok"
