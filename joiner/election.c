/* Who builds: the lock of node/election.py. Those who wait for it wait here, in a process of some
 * kilobytes; only who gets it becomes Python, which inherits it. */
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

static bool locked(int fd)
{
    int found;
    do
        found = flock(fd, LOCK_EX);
    while (found && errno == EINTR && !expired);
    return found == 0;
}

static bool locked_in_time(int fd)
{
    struct itimerval timer = {{SILENT, 0}, {SILENT, 0}}, none = {{0, 0}, {0, 0}};
    struct sigaction handler, before;
    sigset_t blocked;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0)
        return true;
    if (errno != EWOULDBLOCK)
        return false;
    /* Whoever started this has set an alarm, or blocked it, for the command: leave it alone. */
    if (getitimer(ITIMER_REAL, &none) || none.it_value.tv_sec || none.it_value.tv_usec ||
        sigprocmask(SIG_BLOCK, NULL, &blocked) || sigismember(&blocked, SIGALRM))
        return locked(fd);
    memset(&handler, 0, sizeof handler);
    handler.sa_handler = expire;
    if (sigaction(SIGALRM, &handler, &before))
        return false;
    setitimer(ITIMER_REAL, &timer, NULL);
    bool found = locked(fd);
    memset(&none, 0, sizeof none);
    setitimer(ITIMER_REAL, &none, NULL);
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

/* Wait for the lock of NAME.lock, or the directory's where that file is not there yet. */
void elect(int directory, const char *name)
{
    char *file = JOIN(name, ".lock");
    for (;;) {
        if (!locked(directory))
            hand_over(); /* not on NFS (flock(2)) */
        int fd = openat(directory, file, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0 && errno == ENOENT) {
            start.directory = directory;
            return;
        }
        flock(directory, LOCK_UN);
        if (fd < 0 || !locked_in_time(fd)) {
            if (fd >= 0)
                close(fd);
            hand_over();
        }
        /* Whoever ends a container removes its lock: then this one has no name any more. */
        if (is_named(fd, directory, file)) {
            start.directory = directory;
            start.lock = fd;
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
