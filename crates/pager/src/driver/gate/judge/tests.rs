use super::*;

const fn instruction(code: u16, yes: u8, no: u8, value: u32) -> Instruction {
    Instruction { code, yes, no, value }
}

const fn load(offset: u32) -> Instruction {
    instruction(LOAD, 0, 0, offset)
}

const fn ret(action: u32) -> Instruction {
    instruction(RETURN, 0, 0, action)
}

/// Goes on behind `skip` instructions unless the accumulator is `value`.
fn unless(value: i64, skip: u8) -> Instruction {
    instruction(JUMPS | EQUAL, 0, skip, value as u32)
}

/// The architecture is looked at as every filter does, then this is done to these calls and that to all others.
fn filter(calls: &[i64], action: u32, others: u32) -> Vec<Instruction> {
    let mut program = vec![
        load(4),
        instruction(JUMPS | EQUAL, 1, 0, ARCH_X86_64),
        ret(libc::SECCOMP_RET_KILL_PROCESS),
        load(0),
        // Those of x32.
        instruction(JUMPS | GREATER_OR_EQUAL, 0, 1, 0x4000_0000),
        ret(libc::SECCOMP_RET_KILL_PROCESS),
    ];
    for &call in calls {
        program.extend([unless(call, 1), ret(action)]);
    }
    program.push(ret(others));
    program
}

const ENDS: [u32; 4] = [
    libc::SECCOMP_RET_KILL_PROCESS,
    libc::SECCOMP_RET_KILL_THREAD,
    libc::SECCOMP_RET_TRAP,
    libc::SECCOMP_RET_USER_NOTIF,
];

#[test]
fn what_lets_all_calls_pass_is_harmless() {
    assert!(is_harmless(&[ret(libc::SECCOMP_RET_ALLOW)]));
    assert!(is_harmless(&[ret(libc::SECCOMP_RET_LOG)]));
    for action in ENDS {
        assert!(is_harmless(&filter(&[libc::SYS_reboot, libc::SYS_uname], action, libc::SECCOMP_RET_ALLOW)));
    }
}

#[test]
fn each_call_of_an_agent_matters() {
    for (nr, _) in WORK.iter().chain(SET_UP) {
        for action in ENDS {
            assert!(!is_harmless(&filter(&[*nr], action, libc::SECCOMP_RET_ALLOW)), "{nr} {action:#x}");
        }
    }
    for (nr, _) in WORK {
        assert!(!is_harmless(&filter(&[*nr], libc::SECCOMP_RET_ERRNO | 1, libc::SECCOMP_RET_ALLOW)), "{nr}");
    }
    let all: Vec<_> = WORK.iter().chain(SET_UP).map(|(nr, _)| *nr).collect();
    for missing in 0..all.len() {
        let others: Vec<_> = all.iter().copied().filter(|nr| *nr != all[missing]).collect();
        assert!(is_harmless(&filter(&all, libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_TRAP)));
        assert!(!is_harmless(&filter(&others, libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_TRAP)));
    }
}

#[test]
fn setting_one_up_may_fail() {
    let denied = [libc::SYS_userfaultfd, libc::SYS_socket, libc::SYS_clone];
    assert!(is_harmless(&filter(&denied, libc::SECCOMP_RET_ERRNO | 1, libc::SECCOMP_RET_ALLOW)));
}

#[test]
fn arguments_are_looked_at_where_they_are_known() {
    let on = |nr: i64, argument: u32, test: Instruction| {
        [
            load(0),
            unless(nr, 3),
            load(16 + 8 * argument),
            test,
            ret(libc::SECCOMP_RET_KILL_PROCESS),
            ret(libc::SECCOMP_RET_ALLOW),
        ]
    };
    let fits = |value| instruction(JUMPS | EQUAL, 0, 1, value);
    assert!(is_harmless(&on(libc::SYS_ioctl, 1, fits(libc::TIOCSTI as u32))));
    assert!(!is_harmless(&on(libc::SYS_ioctl, 1, fits(0xc028_aa05))));
    // A descriptor: nobody knows which.
    assert!(!is_harmless(&on(libc::SYS_ioctl, 0, fits(77))));
    // Docker's filter asks whether a clone makes a namespace, systemd's whether memory is to be writable and executable.
    let any = |value| instruction(JUMPS | ANY_BIT, 0, 1, value);
    assert!(is_harmless(&on(libc::SYS_clone, 0, any(libc::CLONE_NEWUSER as u32))));
    assert!(!is_harmless(&on(libc::SYS_clone, 0, any(libc::CLONE_THREAD as u32))));
    let masked = [
        load(0),
        unless(libc::SYS_mmap, 4),
        load(16 + 8 * 2),
        instruction(ARITHMETIC | AND, 0, 0, 6),
        unless(6, 1),
        ret(libc::SECCOMP_RET_KILL_PROCESS),
        ret(libc::SECCOMP_RET_ALLOW),
    ];
    assert!(is_harmless(&masked));
}

#[test]
fn what_is_not_understood_is_not_harmless() {
    assert!(!is_harmless(&[]));
    assert!(!is_harmless(&[load(0)]), "it ends without a word");
    assert!(!is_harmless(&[load(8), instruction(RETURN_A, 0, 0, 0)]), "it answers what nobody knows");
    assert!(!is_harmless(&[instruction(0xffff, 0, 0, 0), ret(libc::SECCOMP_RET_ALLOW)]));
    // Scratch memory: read back, it may be anything.
    let through_memory = [
        load(0),
        instruction(STORES, 0, 0, 3),
        instruction(LOADS | 0x60, 0, 0, 3),
        unless(libc::SYS_reboot, 1),
        ret(libc::SECCOMP_RET_KILL_PROCESS),
        ret(libc::SECCOMP_RET_ALLOW),
    ];
    assert!(!is_harmless(&through_memory));
}
