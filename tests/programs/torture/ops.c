// The table of operations.
#include "ops.h"

void run_op(Thread *t, Op op) {
    t->counts[op]++;
    switch (op) {
    case OP_FILL: do_fill(t); break;
    case OP_TOUCH: do_touch(t); break;
    case OP_VERIFY: do_verify(t); break;
    case OP_PEEK: do_peek(t); break;
    case OP_MAP: do_map(t); break;
    case OP_UNMAP: do_unmap(t); break;
    case OP_TAIL: do_tail(t); break;
    case OP_FIXED: do_fixed(t); break;
    case OP_DONTNEED: do_dontneed(t); break;
    case OP_MFREE: do_free(t); break;
    case OP_GROW: do_grow(t); break;
    case OP_SHRINK: do_shrink(t); break;
    case OP_MOVE: do_move(t); break;
    case OP_ONTO: do_onto(t); break;
    case OP_DONTUNMAP: do_dontunmap(t); break;
    case OP_STEAL: do_steal(t); break;
    case OP_PROTECT: do_protect(t); break;
    case OP_PIPE: do_pipe(t); break;
    case OP_FORK: op_fork(t); break;
    case OP_SPAWN: op_spawn(t); break;
    case OP_BRK: do_brk(t); break;
    case OP_GUARD: do_guard(t); break;
    case OP_MLOCK: do_mlock(t); break;
    case OP_WIPE: do_wipe(t); break;
    case OP_HUGE: do_huge(t); break;
    case OP_STACK: do_stack(t); break;
    case OP_FILE: do_file(t); break;
    case OP_SIGNAL: do_signal(t); break;
    case OP_JUMP: do_jump(t); break;
    case OP_IDLE: do_idle(t); break;
    case OP_SHIFT: do_shift(t); break;
    case OP_COUNT: break;
    }
}
