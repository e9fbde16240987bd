/* Through which process to enter a container, and the way in: `likely` and `join` of
 * node/record.py. */
#include "joiner.h"

#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* The line "PID START" from `at` to `end`; false for what is none. */
static bool member(const char *at, size_t length, long *pid, unsigned long long *start_time)
{
    const char *blank = memchr(at, ' ', length);
    unsigned long long number;
    size_t before = blank ? (size_t)(blank - at) : 0;
    if (!blank || !digits(at, before, 10, &number) || number < 1 || number > INT32_MAX)
        return false;
    *pid = (long)number;
    return digits(blank + 1, length - before - 1, 18, start_time) && *start_time;
}

/* The member before *end, who came last first; false where there is no more. */
static bool member_before(const struct record *record, size_t *end, long *pid,
                          unsigned long long *start_time)
{
    while (*end > 0) {
        size_t begin = *end;
        while (begin > 0 && record->members[begin - 1] != '\n')
            begin--;
        bool found = member(record->members + begin, *end - begin, pid, start_time);
        *end = begin > 0 ? begin - 1 : 0;
        if (found)
            return true;
    }
    return false;
}

static int space(long pid, const char *kind, unsigned long long number)
{
    struct stat found;
    int fd = open(number_in("/proc/", (unsigned long long)pid, JOIN("/ns/", kind)),
                  O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && (fstat(fd, &found) || found.st_ino != number)) {
        close(fd);
        fd = -1;
    }
    return fd;
}

static bool spaces_of(const struct record *record, long pid, unsigned long long start_time,
                      int spaces[2])
{
    spaces[0] = space(pid, "user", record->user);
    spaces[1] = spaces[0] < 0 ? -1 : space(pid, "mnt", record->mnt);
    /* Looked at after the opens: who has this start time has had the id all the time. */
    if (spaces[1] >= 0 && alive(pid, start_time))
        return true;
    for (int i = 0; i < 2; i++)
        if (spaces[i] >= 0)
            close(spaces[i]);
    return false;
}

static char *line_of(long pid, unsigned long long start_time)
{
    return number_in(number_in("", (unsigned long long)pid, " "), start_time, "\n");
}

/* The namespaces of a member that lives: the last, then the builder, of which one mostly does. */
bool find_spaces(struct record *record, int spaces[2])
{
    const char *line = memchr(record->members, '\n', record->length);
    size_t end = record->length, first = line ? (size_t)(line - record->members) : 0;
    long pid;
    unsigned long long start_time;
    for (int tries = 0; member_before(record, &end, &pid, &start_time); tries++) {
        if (spaces_of(record, pid, start_time, spaces)) {
            /* The next one shall find it as the last at once. */
            record->again = tries ? line_of(pid, start_time) : NULL;
            return true;
        }
        if (tries == 0 && member_before(record, &first, &pid, &start_time) &&
            spaces_of(record, pid, start_time, spaces))
            return true;
    }
    return false;
}

/* Whether a member lives, who may be on his way in. */
bool record_entering(const struct record *record)
{
    size_t end = record->length;
    long pid;
    unsigned long long start_time;
    while (member_before(record, &end, &pid, &start_time))
        if (alive(pid, start_time))
            return true;
    return false;
}

/* Become a member, then enter: a peer that comes meanwhile finds a living one. From the first
 * setns(2) on there is no way back, and nothing of ours outside can be executed. */
void enter(const struct record *record, const int spaces[2])
{
    struct text line = {0};
    add(&line, line_of(getpid(), started(getpid())));
    if (record->again)
        add(&line, record->again);
    /* Without room this one is inside as well; whoever comes goes in through another member. */
    if (write(record->fd, line.at, line.length) < 0 && errno != ENOSPC && errno != EDQUOT)
        hand_over();
    /* Nobody reads a file that was replaced meanwhile (node/compact.py): once more, by Python. */
    struct stat own;
    if (fstat(record->fd, &own) || !own.st_nlink)
        hand_over();
    /* EINVAL is what a udi-run inside is told: in this container, or in another of its launcher's. */
    bool inside = setns(spaces[0], CLONE_NEWUSER) != 0;
    if (inside && errno != EINVAL)
        hand_over();
    inside = inside && stat("/proc/self/ns/mnt", &own) == 0 && own.st_ino == record->mnt;
    if (!inside && setns(spaces[1], CLONE_NEWNS) && errno != EINVAL) {
        fail(125, JOIN("setns failed: ", reason(errno)),
             errno == EPERM ? "is this udi-run in a container, and the shared one outside? --share=off"
                            : "");
    }
    close(spaces[0]);
    close(spaces[1]);
    for (int capability = 0; capability < 64; capability++)
        if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0))
            break;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        fail(125, JOIN("prctl failed: ", reason(errno)), "");
}

/* Whether this is the first of the node's ranks to say that their folder is missing. */
bool first_to_tell(const struct record *record)
{
    struct text line = {0}, data = {0};
    add(&line, "\ntold ");
    add_number(&line, (unsigned long long)getpid());
    add(&line, "\n");
    add(&data, "");
    if (write(record->fd, line.at, line.length) < 0 ||
        lseek(record->fd, (off_t)record->tail, SEEK_SET) < 0 ||
        !read_all(record->fd, &data, (size_t)1 << 26))
        return true;
    const char *found = NULL;
    for (size_t i = 0; !found && i + 6 <= data.length; i++)
        if (memcmp(data.at + i, "\ntold", 5) == 0)
            found = data.at + i;
    return !found || starts(found, line.at);
}
