#!/bin/bash
# Sorts a file larger than the limit in memory and compares with what a plain run gave.
#
#   sort.sh MIB [PREFIX…]      e.g.  sort.sh 300 vswap run -m 200M --
#
# The file and the plain result are kept in ${VSWAP_TEST_DIR:-${TMPDIR:-/tmp}} and reused.
set -eu
export LC_ALL=C
mib=${1:-300}; shift || true
dir=${VSWAP_TEST_DIR:-${TMPDIR:-/tmp}}
in=$dir/vswap-log-$mib.in plain=$dir/vswap-log-$mib.sorted
if [ ! -s "$plain" ]; then
    awk -v mib="$mib" 'BEGIN {
        srand(42); n = split("GET POST PUT DELETE HEAD", verb, " "); m = split("users orders items carts search login static api health", what, " ")
        u = split("Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0|Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36|Mozilla/5.0 (Macintosh; Intel Mac OS X 14_5) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Safari/605.1.15|curl/8.5.0|Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", agent, "|")
        for (bytes = 0; bytes < mib * 1048576; bytes += length(line) + 1) {
            line = sprintf("%d.%d.%d.%d - [%02d/Mar/2026:%02d:%02d:%02d] \"%s /%s/%s/%d HTTP/1.1\" %d %d \"https://www.example.org/%s/%s?ref=%08x\" \"%s\"", rand() * 256, rand() * 256, rand() * 256, rand() * 256,
                rand() * 28 + 1, rand() * 24, rand() * 60, rand() * 60, verb[int(rand() * n) + 1], what[int(rand() * m) + 1], what[int(rand() * m) + 1], rand() * 1e6,
                rand() < 0.9 ? 200 : 404, rand() * 60000, what[int(rand() * m) + 1], what[int(rand() * m) + 1], rand() * 2147483648, agent[int(rand() * u) + 1])
            print line
        }
    }' >"$in"
    sort -S $((mib * 4))M --parallel=2 "$in" >"$plain.part"
    mv "$plain.part" "$plain"
fi
out=$(mktemp "$dir/vswap-sort-XXXXXX"); trap 'rm -f "$out"' EXIT
"$@" sort -S $((mib * 4))M --parallel=2 "$in" >"$out"
cmp "$out" "$plain" || { echo "sort.sh: WRONG the result differs from the plain one" >&2; exit 1; }
echo "sort.sh: $mib MiB ok"
