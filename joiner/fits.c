/* Whether a record is what a rank looks for, and still true: `lost` and `changed` of node/record.py. */
#include "joiner.h"
#include "tables.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static unsigned long long nanoseconds(const struct timespec *time)
{
    return (unsigned long long)time->tv_sec * 1000000000 + (unsigned long long)time->tv_nsec;
}

static bool is_found(const char *kind, const char *path, struct stat *found)
{
    if (strcmp(kind, "opened") != 0)
        return fstatat(AT_FDCWD, path, found,
                       strcmp(kind, "link") == 0 ? AT_SYMLINK_NOFOLLOW : 0) == 0;
    /* So that a network file system asks its server (nfs(5), close-to-open). */
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    bool good = fd >= 0 && fstat(fd, found) == 0;
    if (fd >= 0)
        close(fd);
    return good;
}

/* What tells a file from another one, and a changed one; `state_of` of node/record.py. */
static char *state_of(const char *kind, const char *path)
{
    struct stat found;
    struct text text = {0};
    if (strcmp(kind, "variable") == 0)
        return getenv(path) ? getenv(path) : JOIN("");
    if (!is_found(kind, path, &found))
        return JOIN("-");
    add_number(&text, found.st_dev);
    add(&text, " ");
    add_number(&text, found.st_ino);
    if (strcmp(kind, "place") == 0)
        return text.at;
    add(&text, " ");
    add_number(&text, (unsigned long long)found.st_size);
    add(&text, " ");
    add_number(&text, nanoseconds(&found.st_mtim));
    if (strcmp(kind, "exact") == 0 || strcmp(kind, "opened") == 0) {
        add(&text, " ");
        add_number(&text, nanoseconds(&found.st_ctim));
    }
    return text.at;
}

static bool is_unchanged(const struct record *record)
{
    const struct list *list = &record->same;
    for (size_t i = 0; i < list->count; i += 3)
        if (strcmp(state_of(list->at[i], list->at[i + 1]), list->at[i + 2]) != 0)
            return false;
    return true;
}

static bool is_of(const struct record *record, const struct text *key)
{
    return record->request && record->request_length == key->length &&
           memcmp(record->request, key->at, key->length) == 0;
}

/* Whether a noted plan is this very request's, not too old, and all it was made of is as it was. */
bool record_is_known(const struct record *record, const struct text *key)
{
    time_t now = time(NULL);
    return is_of(record, key) && now >= 0 && (unsigned long long)now < record->until &&
           record->until - (unsigned long long)now <= KNOWN_AGE && is_unchanged(record);
}

/* Whether it is this very container's, and its image server lives. */
bool record_fits(const struct record *record, const struct text *key)
{
    if (!is_of(record, key) || (record->dead && *record->dead) || !is_unchanged(record))
        return false;
    const char *server = record->server ? record->server : "", *blank = strchr(server, ' ');
    unsigned long long pid, start_time;
    if (!blank || !digits(server, (size_t)(blank - server), 10, &pid) || pid < 1 ||
        pid > INT32_MAX || !digits(blank + 1, strlen(blank + 1), 18, &start_time))
        return true; /* nobody serves */
    return alive((long)pid, start_time);
}
