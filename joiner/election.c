/* Who builds: the lock of node/election.py. Those who wait for it wait here, in a process of some
 * kilobytes; only who gets it for itself alone becomes Python, which inherits it. */
#include "joiner.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

enum { SILENT = 5 }; /* seconds after which one of those who wait says so, in Python */

static volatile sig_atomic_t expired;

static void expire(int number)
{
    (void)number;
    expired = 1;
}

static bool is_first_to_tell(int fd)
{
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    return fcntl(fd, F_SETLK, &whole) == 0;
}

/* Whether the lock was got; if not, nobody else says yet who is waited for. */
static bool locked(int fd, int how)
{
    while (flock(fd, how)) {
        if (errno != EINTR || (expired && is_first_to_tell(fd)))
            return false;
        expired = 0;
    }
    return true;
}

static bool locked_in_time(int fd, int how)
{
    struct itimerval timer = {{SILENT, 0}, {SILENT, 0}}, none = {{0, 0}, {0, 0}};
    struct sigaction handler = {0}, before;
    sigset_t blocked;
    if (flock(fd, how | LOCK_NB) == 0)
        return true;
    if (errno != EWOULDBLOCK)
        return false;
    /* Whoever started this has set an alarm, or blocked it, for the command: leave it alone. */
    if (getitimer(ITIMER_REAL, &none) || none.it_value.tv_sec || none.it_value.tv_usec ||
        sigprocmask(SIG_BLOCK, NULL, &blocked) || sigismember(&blocked, SIGALRM))
        return locked(fd, how);
    handler.sa_handler = expire;
    if (sigaction(SIGALRM, &handler, &before))
        return false;
    setitimer(ITIMER_REAL, &timer, NULL);
    bool found = locked(fd, how);
    setitimer(ITIMER_REAL, &(struct itimerval){{0, 0}, {0, 0}}, NULL);
    sigaction(SIGALRM, &before, NULL);
    return found;
}

static bool is_named(int fd, int directory, const char *name)
{
    struct stat open_one, named;
    return fstat(fd, &open_one) == 0 &&
           fstatat(directory, name, &named, AT_SYMLINK_NOFOLLOW) == 0 &&
           open_one.st_dev == named.st_dev && open_one.st_ino == named.st_ino;
}

/* NAME.lock, or -1 with the directory locked where that file is not there yet. */
static int lock_file(int directory, const char *file)
{
    for (;;) {
        int fd = openat(directory, file, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
        if (fd >= 0 || errno != ENOENT)
            return fd;
        if (flock(directory, LOCK_EX | LOCK_NB) == 0) {
            /* Between these two another one may have made it, and released the directory. */
            fd = openat(directory, file, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
            if (fd < 0 && errno == ENOENT)
                start.directory = directory;
            else
                flock(directory, LOCK_UN);
            return fd;
        }
        /* All who wait for the file are woken at once. */
        if (errno != EWOULDBLOCK || flock(directory, LOCK_SH))
            hand_over(); /* not on NFS (flock(2)) */
        flock(directory, LOCK_UN);
    }
}

/* Wait until nobody builds; with `build` until nobody else may. Those who wait to join hold the
 * lock together: one after the other would take as long as all of them, and the first ones may have
 * ended before the last one comes. */
void elect(int directory, const char *name, bool build)
{
    char *file = JOIN(name, ".lock");
    for (;;) {
        int fd = lock_file(directory, file);
        if (start.directory >= 0)
            return;
        if (fd < 0 || !locked_in_time(fd, build ? LOCK_EX : LOCK_SH)) {
            if (fd >= 0)
                close(fd);
            hand_over();
        }
        /* Whoever ends a container removes its lock: then this one has no name any more. */
        if (is_named(fd, directory, file)) {
            start.lock = fd;
            start.directory = build ? directory : -1;
            return;
        }
        close(fd);
    }
}

void release(void)
{
    if (start.lock >= 0)
        close(start.lock);
    else if (start.directory >= 0)
        flock(start.directory, LOCK_UN);
    start.lock = start.directory = -1;
}
