// Runs a program behind a seccomp filter that answers as Docker's default one does to what vswap might use.
//
//     container [ptrace|untraced] CMD [ARGS]...
//
// The calls are those that the default profile (profiles/seccomp/default.json in github.com/moby/moby) refuses to a container
// without added capabilities; `ptrace` allows what it allows with CAP_SYS_PTRACE;
// `untraced` refuses ptrace too, as that profile does before Linux 4.8. Capabilities are the caller's business.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ALLOW SECCOMP_RET_ALLOW
#define REFUSE(errno) (SECCOMP_RET_ERRNO | (errno))
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define IF(nr, what) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1), BPF_STMT(BPF_RET | BPF_K, what)
// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET: 0x7e020000
#define NAMESPACES 2114060288u

int main(int argc, char **argv)
{
	int traces = argc > 1 && strcmp(argv[1], "ptrace") == 0;
	int untraced = argc > 1 && strcmp(argv[1], "untraced") == 0;
	char **command = argv + 1 + (traces || untraced);
	if (!*command)
		return 2;
	struct sock_filter filter[] = {
		LOAD(nr),
		IF(SYS_userfaultfd, REFUSE(EPERM)),
		IF(SYS_ptrace, untraced ? REFUSE(EPERM) : ALLOW),
		IF(SYS_kcmp, traces ? ALLOW : REFUSE(EPERM)),
		IF(SYS_process_madvise, traces ? ALLOW : REFUSE(EPERM)),
		IF(SYS_pidfd_getfd, traces ? ALLOW : REFUSE(EPERM)),
		IF(SYS_perf_event_open, REFUSE(EPERM)),
		IF(SYS_bpf, REFUSE(EPERM)),
		IF(SYS_mount, REFUSE(EPERM)),
		IF(SYS_unshare, REFUSE(EPERM)),
		IF(SYS_setns, REFUSE(EPERM)),
		IF(SYS_io_uring_setup, REFUSE(EPERM)),
		IF(SYS_keyctl, REFUSE(EPERM)),
		IF(SYS_clone3, REFUSE(ENOSYS)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, ALLOW),
		LOAD(args[0]),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, NAMESPACES, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, REFUSE(EPERM)),
		BPF_STMT(BPF_RET | BPF_K, ALLOW),
	};
	struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
	// As Docker does, which has CAP_SYS_ADMIN still: without no_new_privs if it can be.
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0 &&
	    (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)) {
		perror("container: seccomp");
		return 2;
	}
	execvp(*command, command);
	perror(*command);
	return 127;
}
