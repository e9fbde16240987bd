/* Make a container by a known plan, as launch/execute.py does: namespaces, a base, the image by FUSE.
 * Whatever fails ends this process alone. */
#include "joiner.h"
#include "tables.h"

#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    OPEN_TREE = 428, /* open_tree(2); the number of unistd.h, the same on every architecture */
    CLONE_TREE = 1,
};

/* New user and mount namespaces, with one id: idmap/userns.py. */
static bool spaces(unsigned long long uid, unsigned long long outside_uid, unsigned long long gid,
                   unsigned long long outside_gid)
{
    const char *users = number_in(number_in("", uid, " "), outside_uid, " 1\n");
    const char *groups = number_in(number_in("", gid, " "), outside_gid, " 1\n");
    return unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0 &&
           wrote("/proc/self/setgroups", 0, 0, "deny") &&
           wrote("/proc/self/uid_map", 0, 0, users) && wrote("/proc/self/gid_map", 0, 0, groups);
}

/* A private tmpfs as root directory, with the host's at /host. */
static bool base(void)
{
    static const char *const folders[] = {"host",       "image", "upper", "upper/upper",
                                          "upper/work", "files", "root",  NULL};
    if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) ||
        mount("tmpfs", MOUNT_BASE, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755") || chdir(MOUNT_BASE))
        return false;
    for (const char *const *folder = folders; *folder; folder++)
        if (mkdir(*folder, 0755))
            return false;
    return syscall(SYS_pivot_root, ".", "host") == 0 && chdir("/") == 0;
}

static void push_all(struct list *list, const char *const *words)
{
    for (; *words; words++)
        push(list, *words);
}

/* Have earlier questions asked through a copy of the mount, on which nothing is mounted. */
static void ask_ahead(const struct served *served)
{
    struct list words = {0};
    int space = open("/host/proc/self/ns/user", O_RDONLY | O_CLOEXEC);
    int top = (int)syscall(OPEN_TREE, AT_FDCWD, "/image", CLONE_TREE | O_CLOEXEC);
    push(&words, "ask");
    if (space >= 0 && top >= 0)
        say(served->helper, &words, (int[]){space, top}, 2);
    if (space >= 0)
        close(space);
    if (top >= 0)
        close(top);
}

/* Mount the image by FUSE; give the connection to its server, and wait until that answers. */
static bool image(const struct served *served, const struct known *known)
{
    struct list connection = {0}, told = {0};
    char entries[4096];
    int fuse = open("/host/dev/fuse", O_RDWR | O_CLOEXEC), watch = inotify_init1(IN_CLOEXEC);
    if (fuse < 0)
        return false;
    if (watch >= 0)
        inotify_add_watch(watch, "/files", IN_UNMOUNT | IN_ONLYDIR);
    const char *options = JOIN(number_in("fd=", (unsigned)fuse, ""), FUSE_OPTIONS);
    push(&connection, "fuse");
    push_all(&told, (const char *const[]){
                        "udi", JOIN(watch >= 0 ? "w" : "", known->behind ? "b" : "",
                                      *known->verify ? "c" : ""), known->image,
                        "", known->questions, known->key, known->keep, "0", NULL});
    bool good = mount("udi", "/image", "fuse.udi", MS_RDONLY | MS_NOSUID | MS_NODEV, options) == 0 &&
                say(served->server, &connection, &fuse, 1) &&
                say(served->helper, &told, &watch, watch >= 0);
    /* Were it open here and the server died, whoever reads would hang and not get ENOTCONN. */
    close(fuse);
    if (watch >= 0)
        close(watch);
    if (!good)
        return false;
    /* Its entries come into the kernel's cache by that. */
    int top = open("/image", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    good = top >= 0 && syscall(SYS_getdents64, top, entries, sizeof entries) >= 0;
    if (top >= 0)
        close(top);
    if (good && *known->questions)
        ask_ahead(served);
    return good;
}

/* In a process that is about to end: make the container, so that another one can join it. */
bool make_container(const struct served *served, const struct known *known, const struct list *steps)
{
    unsigned uid = getuid(), gid = getgid();
    umask(022);
    return spaces(OUTER, uid, OUTER, gid) && base() && image(served, known) && upper(steps) &&
           steps_done(steps) && syscall(SYS_pivot_root, ".", ".") == 0 &&
           umount2(".", MNT_DETACH) == 0 && chdir("/") == 0 && spaces(uid, OUTER, gid, OUTER);
}
