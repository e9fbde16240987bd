/* The state directory: node/places.py, for who needs no configuration. What is rare there (a
 * place that is somebody else's, folders with access control lists) is handed over. */
#include "joiner.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_PLACES = 4, UNKNOWN_USER = 65534 };

struct place {
    char *path;
    bool shared; /* others may make something there */
};

static bool is_ours(const struct stat *found)
{
    return S_ISDIR(found->st_mode) && found->st_uid == getuid() && !(found->st_mode & 077);
}

static bool is_later(int number)
{
    return number == ENOENT || number == ENOTDIR || number == EACCES || number == EPERM ||
           number == EROFS || number == ENAMETOOLONG || number == ELOOP;
}

static bool is_shared(const char *folder)
{
    struct stat found;
    if (stat(folder, &found))
        return false;
    if (found.st_uid == UNKNOWN_USER)
        hand_over();
    if (found.st_uid != getuid() && found.st_uid != 0)
        return true;
    if ((found.st_mode & 022) == 020)
        hand_over(); /* its list says who may write */
    return found.st_mode & 022;
}

static size_t candidates(const struct list *env, struct place places[MOST_PLACES])
{
    const char *runtime = get_or(env, "XDG_RUNTIME_DIR", "");
    char *user = number_in("", getuid(), "");
    const char *folders[] = {runtime, JOIN("/run/user/", user), "/tmp", "/dev/shm"};
    const char *names[] = {"/rootless_udi", "/rootless_udi", JOIN("/udi-", user),
                           JOIN("/udi-", user)};
    size_t count = 0;
    for (size_t i = *runtime == '/' ? 0 : 1; i < MOST_PLACES; i++)
        places[count++] =
            (struct place){JOIN(folders[i], names[i]), is_shared(folders[i])};
    return count;
}

static int opened(const char *path)
{
    struct stat found;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        if (!is_later(errno))
            hand_over();
        return -1;
    }
    if (fstat(fd, &found) == 0 && is_ours(&found))
        return fd;
    close(fd);
    return -1;
}

static bool made(const char *path)
{
    /* Whatever the caller's umask is, the owner must get in. */
    mode_t mask = umask(077);
    bool found = mkdir(path, 0700) == 0 || errno == EEXIST;
    int why = errno;
    umask(mask);
    if (!found && !is_later(why))
        hand_over();
    return found;
}

/* The last one that is the caller's of a group: one place in a folder of his own alone, all in
 * folders that others may write together. */
static int last_of(const struct place *places, size_t count, size_t first, bool *alone)
{
    int found = -1;
    for (size_t i = count; i-- > first;) {
        if (i != first && !(places[first].shared && places[i].shared))
            continue;
        int fd = opened(places[i].path);
        if (fd < 0)
            continue;
        if (found >= 0) {
            *alone = false;
            close(fd);
        } else {
            found = fd;
        }
    }
    return found;
}

static bool refused(const char *path)
{
    struct stat found;
    return lstat(path, &found) == 0 && !is_ours(&found);
}

/* A descriptor of the state directory; -1 for none. With `make` it is made where it is missing.
 * `alone`: no other place of its kind is there, whose lock a builder would have to hold as well. */
int place_find(const struct list *env, bool make, bool *alone)
{
    struct place places[MOST_PLACES];
    size_t count = candidates(env, places);
    int found = -1;
    bool done = false; /* with the shared ones, which are together at the place of the first */
    *alone = true;
    for (size_t i = 0; i < count && found < 0; i++) {
        if (places[i].shared && done)
            continue;
        done = done || places[i].shared;
        found = last_of(places, count, i, alone);
        for (size_t k = i; make && found < 0 && k < count; k++)
            if ((k == i || (places[i].shared && places[k].shared)) && made(places[k].path))
                found = last_of(places, count, i, alone);
    }
    /* Where others have taken them the site names more. */
    for (size_t i = 0; i < count && found < 0; i++)
        if (refused(places[i].path))
            hand_over();
    return found;
}
