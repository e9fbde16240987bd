/* The steps of a known plan, as launch/rootfs.py did them before: launch/known.py has noted them. */
#include "joiner.h"
#include "tables.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    OPENAT2 = 437, /* numbers of unistd.h, the same on every architecture */
    MOUNT_SETATTR = 442,
    RECURSIVE = 0x8000, /* mount_setattr(2) */
    NO_SYMLINKS = 4,    /* openat2(2) */
    IN_ROOT = 16,
    MOST_SEALS = 16,
};
enum { KIND, PATH, HOW, WHAT, PARTS };

/* Write a file as a whole. */
bool wrote(const char *path, int flags, mode_t mode, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC | flags, mode);
    size_t length = strlen(text);
    bool good = fd >= 0;
    while (good && length) {
        ssize_t done = write(fd, text, length);
        good = done > 0;
        text += good ? done : 0;
        length -= good ? (size_t)done : 0;
    }
    if (fd >= 0)
        close(fd);
    return good;
}

static char *name_of(int fd)
{
    return number_in("/host/proc/self/fd/", (unsigned)fd, "");
}

/* What is written into the overlay's upper layer before that is mounted: files of /etc. */
bool upper(const struct list *steps)
{
    struct stat etc;
    bool good = lstat("/image/etc", &etc) == 0 && S_ISDIR(etc.st_mode) &&
                mkdir("/upper/upper/etc", 0755) == 0 &&
                chmod("/upper/upper/etc", etc.st_mode & 07777) == 0;
    for (size_t i = 0; good && i < steps->count; i += PARTS) {
        char *const *step = steps->at + i;
        const char *path = JOIN("/upper/upper", step[PATH]);
        unsigned long long mode;
        static const char *const kinds[] = {"write", "link", NULL};
        if (is_one_of(step[KIND], kinds) &&
            (!starts(step[PATH], "/etc/") || strchr(step[PATH] + 5, '/')))
            return false;
        if (strcmp(step[KIND], "write") == 0)
            good = digits(step[HOW], strlen(step[HOW]), 5, &mode) &&
                   wrote(path, O_CREAT | O_EXCL, (mode_t)mode, step[WHAT]);
        else if (strcmp(step[KIND], "link") == 0)
            good = symlink(step[WHAT], path) == 0;
    }
    return good && mount("overlay", "/root", "overlay", MS_NOSUID | MS_NODEV, OVERLAY_OPTIONS) == 0;
}

struct tree {
    int host, root;
    int seals[MOST_SEALS], count; /* mounts that become read-only at the end */
};

/* A path below `root` without any link, as it was found when the plan was made. */
static int inside(int root, const char *path)
{
    struct {
        uint64_t flags, mode, resolve;
    } how = {O_PATH | O_CLOEXEC, 0, IN_ROOT | NO_SYMLINKS};
    return (int)syscall(OPENAT2, root, path, &how, sizeof how);
}

static bool restrict_at(int fd, unsigned long long attributes, unsigned flags)
{
    struct {
        uint64_t set, clear, propagation, userns;
    } attr = {attributes, 0, 0, 0};
    return syscall(MOUNT_SETATTR, fd, "", AT_EMPTY_PATH | flags, &attr, sizeof attr) == 0;
}

static bool made(const struct tree *tree, char *const step[], bool is_directory)
{
    const char *slash = strrchr(step[PATH], '/');
    struct text folder = {0};
    unsigned long long mode;
    if (!slash || !digits(step[HOW], strlen(step[HOW]), 5, &mode))
        return false;
    add_bytes(&folder, step[PATH], (size_t)(slash - step[PATH]) + 1);
    int parent = inside(tree->root, folder.at), fd = -1;
    bool good = parent >= 0;
    if (good && is_directory)
        good = mkdirat(parent, slash + 1, (mode_t)mode) == 0;
    else if (good)
        good = (fd = openat(parent, slash + 1, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC,
                            (mode_t)mode)) >= 0;
    if (parent >= 0)
        close(parent);
    if (fd >= 0)
        close(fd);
    return good;
}

static bool mounted(struct tree *tree, char *const step[])
{
    bool is_tmpfs = strcmp(step[KIND], "tmpfs") == 0;
    unsigned long long attributes;
    int source = is_tmpfs ? -1 : inside(tree->host, step[WHAT]);
    int target = inside(tree->root, step[PATH]);
    if (!digits(step[HOW], strlen(step[HOW]), 9, &attributes) || target < 0 ||
        (source < 0 && !is_tmpfs))
        return false;
    const char *where = name_of(target);
    if (is_tmpfs ? mount("tmpfs", where, "tmpfs", attributes & ~(unsigned long long)MS_RDONLY,
                         step[WHAT])
                 : mount(name_of(source), where, NULL, MS_BIND | MS_REC, NULL))
        return false;
    close(target);
    if (source >= 0)
        close(source);
    target = inside(tree->root, step[PATH]); /* the mount's own top */
    if (target < 0)
        return false;
    if (is_tmpfs && attributes & MS_RDONLY) {
        if (tree->count == MOST_SEALS)
            return false;
        tree->seals[tree->count++] = target;
        return true;
    }
    bool good = is_tmpfs ||
                ((strcmp(step[KIND], "slave") == 0 ||
                  mount(NULL, name_of(target), NULL, MS_REC | MS_PRIVATE, NULL) == 0) &&
                 (!attributes || restrict_at(target, attributes, RECURSIVE)));
    close(target);
    return good;
}

bool steps_done(const struct list *steps)
{
    struct tree tree = {.host = open("/host", O_PATH | O_CLOEXEC),
                        .root = open("/root", O_PATH | O_CLOEXEC)};
    bool good = tree.host >= 0 && tree.root >= 0;
    for (size_t i = 0; good && i < steps->count; i += PARTS) {
        char *const *step = steps->at + i;
        static const char *const mounts[] = {"bind", "slave", "tmpfs", NULL};
        if (is_one_of(step[KIND], mounts))
            good = mounted(&tree, step);
        else if (strcmp(step[KIND], "mkdir") == 0 || strcmp(step[KIND], "create") == 0)
            good = made(&tree, step, *step[KIND] == 'm');
    }
    for (int i = 0; good && i < tree.count; i++)
        good = restrict_at(tree.seals[i], MS_RDONLY, 0);
    return good && restrict_at(tree.root, MS_RDONLY, 0) && fchdir(tree.root) == 0;
}
