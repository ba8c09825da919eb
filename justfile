# The daily commands; each is one cargo line, so `just` is a convenience and never needed.

# What a change must pass.
ci:
    cargo xtask ci

# Format and lints only.
lint:
    cargo fmt --all --check
    cargo lint

# Unit and model tests.
test:
    cargo test --workspace

# Real programs at half of their memory; `just programs --quick redis`.
programs *args:
    cargo xtask programs {{args}}

# Long torture; `just soak --minutes 60`.
soak *args:
    cargo xtask soak {{args}}

# Against the kernel's zram swap, and the micro-benchmarks; needs root.
bench *args:
    cargo xtask bench {{args}}
