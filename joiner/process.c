/* Processes, as /proc shows them: base/process.py and `alive` of node/record.py. */
#include "joiner.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Add what an open file still holds; false for an error, or for more than `most` bytes. */
bool read_all(int fd, struct text *text, size_t most)
{
    static char part[1 << 16];
    ssize_t got;
    while ((got = read(fd, part, sizeof part)) > 0 || (got < 0 && errno == EINTR)) {
        if (got > 0)
            add_bytes(text, part, (size_t)got);
        if (text->length > most)
            return false;
    }
    return got == 0;
}

/* Add what the file at `path` holds; false where it can't be read. */
bool read_file(const char *path, struct text *text, size_t most)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    add(text, "");
    if (fd < 0)
        return false;
    bool good = read_all(fd, text, most);
    int why = errno;
    close(fd);
    errno = good ? 0 : why;
    return good;
}

/* The word with this number (from 0) of a text with a single blank between words; NULL. */
static const char *word_at(const char *at, size_t number, size_t *length)
{
    while (number-- > 0 && at)
        if ((at = strchr(at, ' ')))
            at++;
    *length = at ? strcspn(at, " \n") : 0;
    return at;
}

/* Fields 22 and 4 of /proc/PID/stat (proc(5)); false with errno, also for a zombie. */
bool start_and_parent(long pid, unsigned long long *start_time, long *parent)
{
    /* A /proc of another PID namespace knows us by another number. */
    char *path = pid == getpid() ? JOIN("/proc/self/stat")
                                 : number_in("/proc/", (unsigned long long)pid, "/stat");
    struct text text = {0};
    unsigned long long number = 0;
    size_t length;
    if (!read_file(path, &text, 1 << 16))
        return false;
    errno = ESRCH;
    const char *at = strrchr(text.at, ')'), *word;
    if (!at || at[1] != ' ' || at[2] == 'Z' || at[2] == 'X')
        return false;
    at += 2;
    word = word_at(at, 1, &length);
    if (!word || !digits(word, length, 10, &number))
        return false;
    *parent = (long)number;
    word = word_at(at, 19, &length);
    bool found = word && digits(word, length, 19, start_time);
    free(text.at);
    return found;
}

unsigned long long started(long pid)
{
    unsigned long long found;
    long parent;
    return start_and_parent(pid, &found, &parent) ? found : 0;
}

/* Sometimes /proc can't tell (hidepid; another PID namespace): then any process of that id of the
 * caller's counts. */
bool alive(long pid, unsigned long long start_time)
{
    unsigned long long found;
    long parent;
    char self[24] = "";
    if (start_and_parent(pid, &found, &parent)) {
        if (found == start_time)
            return true;
        /* A number, which is shorter than this: what fills the buffer is none. */
        ssize_t length = readlink("/proc/self", self, sizeof self - 1);
        if (length >= 0 && strcmp(self, number_in("", (unsigned long long)getpid(), "")) == 0)
            return false;
        if (length >= 0)
            return kill((pid_t)pid, 0) == 0;
    }
    if (errno != ENOENT && errno != EACCES && errno != EPERM)
        return false;
    return kill((pid_t)pid, 0) == 0;
}
