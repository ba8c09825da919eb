#!/bin/bash
# Compiles a generated C++ file of N functions over the standard containers; prints the object's checksum.
#
#   compile.sh N [PREFIX…]      e.g.  compile.sh 1500 vswap run -m 300M --
#
# PREFIX runs the compiler.
set -eu
n=${1:-1000}; shift || true
dir=$(mktemp -d "${VSWAP_TEST_DIR:-${TMPDIR:-/tmp}}/vswap-compile-XXXXXX"); trap 'rm -rf "$dir"' EXIT
{
    echo '#include <map>'; echo '#include <sstream>'; echo '#include <string>'; echo '#include <vector>'
    for i in $(seq "$n"); do
        echo "std::string f$i(std::map<std::string, std::vector<int>> &m) { std::ostringstream o; for (auto &p : m) for (int x : p.second) o << p.first << x * $i; return o.str(); }"
    done
} >"$dir/many.cc"
cd "$dir"
"$@" g++ -O1 -c -frandom-seed=1 -o many.o many.cc
cksum <many.o
