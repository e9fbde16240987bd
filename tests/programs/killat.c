/* killat ROLE CALL NTH WHEN HOW FD COMMAND...: stop or kill one process of a start at one system call.

   ROLE is launcher, between, helper, server or ahead, told by who forked whom; CALL is a name of the
   table, NTH how many-th of it in that process; WHEN is enter or exit; HOW is kill (SIGKILL), stop
   (for 2 s: on entry it is held by ptrace(2), on exit it gets SIGSTOP and SIGCONT) or none. Each call of the table is written to descriptor FD as
   "ROLE CALL NTH" as it is entered. Ends when all of them have: as COMMAND did, or with 99 where the
   call was never made, 96 where a process stays for 60 s after COMMAND, 95 where COMMAND takes 120. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CALL(name) { SYS_##name, #name }
static const struct { long number; const char *name; } calls[] = {
    CALL(chdir), CALL(chroot), CALL(clone), CALL(clone3), CALL(close), CALL(close_range),
    CALL(dup3), CALL(execve), CALL(exit_group), CALL(fchdir), CALL(fchmod), CALL(flock),
    CALL(inotify_add_watch), CALL(inotify_init1), CALL(memfd_create), CALL(mkdirat), CALL(mount),
    CALL(mount_setattr), CALL(open_tree), CALL(openat), CALL(openat2), CALL(pivot_root),
    CALL(prctl), CALL(recvmsg), CALL(sched_setaffinity), CALL(sendmsg), CALL(setns), CALL(setsid),
    CALL(socketpair), CALL(umask), CALL(umount2), CALL(unlinkat), CALL(unshare), CALL(wait4),
    CALL(write), CALL(writev), CALL(read), CALL(symlinkat), CALL(fadvise64), CALL(sendto),
    CALL(recvfrom), CALL(shutdown),
#ifdef SYS_fork /* what newer architectures lack */
    CALL(dup2), CALL(fork), CALL(getdents64), CALL(mkdir), CALL(poll), CALL(rename), CALL(renameat),
    CALL(unlink), CALL(vfork), CALL(symlink),
#else
    CALL(renameat2),
#endif
};
#define CALLS (sizeof calls / sizeof *calls)
enum { LAUNCHER, BETWEEN, HELPER, SERVER, AHEAD, OTHER };
static const char *roles[] = { "launcher", "between", "helper", "server", "ahead", "other" };
static struct { pid_t pid; int role, forks, held; unsigned count[CALLS]; } found[256];
static int known;

static int look(pid_t pid) {
    for (int i = 0; i < known; i++) if (found[i].pid == pid) return i;
    if (known == 256) exit(98);
    found[known].pid = pid;
    found[known].role = -1;
    return known++;
}

static int child_of(int parent) {
    int n = found[parent].forks++;
    switch (found[parent].role) {
    case LAUNCHER: return n == 0 ? BETWEEN : OTHER;
    case BETWEEN: return HELPER;
    case HELPER: return n == 0 ? SERVER : AHEAD;
    default: return OTHER;
    }
}

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    if (argc < 8) return 97;
    const char *role = argv[1], *call = argv[2], *how = argv[5];
    unsigned nth = atoi(argv[3]);
    int at_exit = !strcmp(argv[4], "exit"), kill_it = !strcmp(how, "kill"), log = atoi(argv[6]);
    int done = !strcmp(how, "none"), status, result = 0, ended = 0;
    pid_t stopped = 0, first = fork();
    int by_signal = 0;
    if (first == 0) {
        close(log);
        raise(SIGSTOP);
        execvp(argv[7], argv + 7);
        _exit(127);
    }
    waitpid(first, &status, WUNTRACED);
    long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK
        | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC;
    if (ptrace(PTRACE_SEIZE, first, 0, options)) { perror("ptrace"); return 97; }
    found[look(first)].role = LAUNCHER;
    kill(first, SIGCONT);
    double begun = now(), since = 0, over = 0;
    for (;;) {
        pid_t pid = waitpid(-1, &status, __WALL | WNOHANG);
        if (stopped && now() - since >= 2) {
            if (by_signal) kill(stopped, SIGCONT);
            else ptrace(PTRACE_SYSCALL, stopped, 0, 0);
            stopped = 0;
        }
        if (pid == 0) {
            if (ended && now() - over > 60) return 96;
            if (!ended && now() - begun > 120) return 95;
            /* Short: each call of each process waits for this. */
            usleep(50);
            continue;
        }
        if (pid < 0) break;
        if (!WIFSTOPPED(status)) {
            if (pid == first) {
                result = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
                ended = 1;
                over = now();
            }
            continue;
        }
        int me = look(pid), signal = WSTOPSIG(status), event = status >> 16, pass = 0;
        if (event == PTRACE_EVENT_FORK || event == PTRACE_EVENT_VFORK || event == PTRACE_EVENT_CLONE) {
            unsigned long child;
            ptrace(PTRACE_GETEVENTMSG, pid, 0, &child);
            int it = look(child);
            /* A thread is its process; what a program of ours is not is other. */
            found[it].role = event == PTRACE_EVENT_CLONE && found[me].role == SERVER ? OTHER : child_of(me);
            if (found[it].held) ptrace(PTRACE_SYSCALL, child, 0, 0);
        } else if (event == PTRACE_EVENT_STOP) {
            if (found[me].role < 0) {
                /* Its parent has yet to say whose child it is. */
                found[me].held = 1;
                continue;
            }
            if (signal == SIGSTOP || signal == SIGTSTP) {
                ptrace(PTRACE_LISTEN, pid, 0, 0);
                continue;
            }
        } else if (signal == (SIGTRAP | 0x80)) {
            struct __ptrace_syscall_info info;
            memset(&info, 0, sizeof info);
            static int entered[256];
            if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof info, &info) > 0) {
                int enter = info.op == PTRACE_SYSCALL_INFO_ENTRY;
                int one = entered[me];
                if (enter) {
                    for (one = 0; one < (int)CALLS && calls[one].number != (long)info.entry.nr; one++);
                    entered[me] = one;
                    if (one < (int)CALLS) {
                        found[me].count[one]++;
                        if (found[me].role >= 0 && found[me].role < OTHER)
                            dprintf(log, "%s %s %u\n", roles[found[me].role], calls[one].name, found[me].count[one]);
                    }
                }
                if (!done && one < (int)CALLS && found[me].role >= 0 && enter == !at_exit
                    && !strcmp(roles[found[me].role], role) && !strcmp(calls[one].name, call)
                    && found[me].count[one] == nth) {
                    done = 1;
                    by_signal = at_exit;
                    if (kill_it || by_signal) kill(pid, kill_it ? SIGKILL : SIGSTOP);
                    if (!kill_it) { stopped = pid; since = now(); }
                    if (stopped && !by_signal) continue;
                }
            }
        } else if (event == 0) {
            pass = signal;
        }
        ptrace(PTRACE_SYSCALL, pid, 0, pass);
    }
    return done ? result : 99;
}
