/* A start whose plan is known: launch/known.py has noted what a start of the same request did, and
 * on what that depended. If nothing of it has changed, the container is made without a planner: by
 * a process of its own, so that a step that fails leaves no trace, and Python starts and explains. */
#include "joiner.h"
#include "tables.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

/* What does not name the container, and means more than a start does by itself. */
static bool is_plain(const struct request *request, const struct list *env)
{
    static const int others[] = {O_pull, O_insecure, O_verbose, O_keep};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (request->options[others[i]].set)
            return false;
    return !start.shifter && !get(env, "UDI_JOIN_PLAN");
}

/* `owner` of launch/known.py. */
static char *owner(const struct list *env)
{
    struct utsname system;
    struct list names = {0};
    struct text who = {0};
    if (uname(&system))
        return NULL;
    add(&who, JOIN("start ", system.nodename, " ", system.release, " ", system.machine, "\n",
                   python_script()));
    current_names(&names, env);
    for (size_t i = 0; i < names.count; i++)
        add(&who, JOIN("\n", names.at[i]));
    return who.at;
}

/* Have the container made; its namespaces are then open, and their maker waits for the end of `go`. */
static bool built(const struct served *served, const struct known *known, struct record *record,
                  int spaces[2])
{
    static const char *const kinds[] = {"user", "mnt"};
    struct stat found;
    int ready[2], go[2];
    char done = 0;
    if (pipe2(ready, O_CLOEXEC) || pipe2(go, O_CLOEXEC))
        return false;
    pid_t maker = fork();
    if (maker == 0) {
        close(ready[0]);
        close(go[1]);
        if (make_container(served, known, &record->steps) && write(ready[1], "", 1) == 1)
            while (read(go[0], &done, 1) < 0 && errno == EINTR)
                ;
        _exit(0);
    }
    close(ready[1]);
    close(go[0]);
    ssize_t got = maker > 0 ? 0 : -1;
    while (maker > 0 && (got = read(ready[0], &done, 1)) < 0 && errno == EINTR)
        ;
    bool good = got == 1;
    for (int i = 0; good && i < 2; i++) {
        char *path = number_in("/proc/", (unsigned)maker, JOIN("/ns/", kinds[i]));
        spaces[i] = open(path, O_RDONLY | O_CLOEXEC);
        good = spaces[i] >= 0 && fstat(spaces[i], &found) == 0;
        if (good)
            *(i ? &record->mnt : &record->user) = found.st_ino;
    }
    close(ready[0]);
    close(go[1]);
    if (maker > 0)
        ended(maker);
    return good;
}

static void number_field(struct text *head, const char *name, unsigned long long number)
{
    char *value = number_in("", number, "");
    add_field(head, name, value, strlen(value));
}

/* Write the container's record, as node/publish.py; from then on `record` is that one. */
static bool published(struct record *record, int directory, const char *name, const char *token,
                      const char *server)
{
    struct text head = {0}, whole = {0};
    char *new = JOIN(name, ".new");
    add_field(&head, "request", "", 0);
    add_field(&head, "job", "", 0);
    add_field(&head, "token", token, strlen(token));
    number_field(&head, "started", (unsigned long long)time(NULL));
    number_field(&head, "user", record->user);
    number_field(&head, "mnt", record->mnt);
    add_field(&head, "server", server, strlen(server));
    add_bytes(&head, record->copied.at, record->copied.length);
    add(&whole, number_in("udi " RECORD_FORMAT " ", head.length, "\n"));
    record->tail = whole.length + head.length;
    add_bytes(&whole, head.at, head.length);
    add(&whole, number_in("", (unsigned)getpid(), " "));
    add(&whole, number_in("", started(getpid()), "\n"));
    mode_t mask = umask(077);
    record->fd = openat(directory, new,
                        O_RDWR | O_APPEND | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    umask(mask);
    bool good = record->fd >= 0 &&
                write(record->fd, whole.at, whole.length) == (ssize_t)whole.length &&
                renameat(directory, new, directory, JOIN(name, "." RECORD_FORMAT)) == 0;
    if (!good && record->fd >= 0)
        unlinkat(directory, new, 0);
    return good;
}

static bool is_place(const char *path, int directory)
{
    struct stat named, open_one;
    return path && stat(path, &named) == 0 && fstat(directory, &open_one) == 0 &&
           named.st_dev == open_one.st_dev && named.st_ino == open_one.st_ino;
}

/* Start by the known plan and become the command; returns where there is none, or it fails. */
void start_known(const struct request *request, const struct list *env)
{
    struct text key = {0}, name = {0};
    struct record record;
    struct known known = {0};
    struct served served;
    struct command command = {{0}, {0}, {0}};
    struct list words = {0};
    bool alone;
    int spaces[2], directory;
    char *who = is_plain(request, env) ? owner(env) : NULL;
    start.notes = who != NULL;
    if (!who || (directory = place_find(env, false, &alone)) < 0)
        return;
    container_key(request, who, env, &key, &name);
    char *file = JOIN(STARTS "/" KNOWN, name.at);
    if (!record_read(directory, file, &record))
        return;
    known.image = record.path;
    if (!record_is_known(&record, &key) || !is_place(record.place, directory) || !known.image)
        return;
    known.verify = record.verify ? record.verify : "";
    about(request, &known);
    if (!questions(&known, record.place, record.optimized))
        return;
    prepare(&command, request, &record, env);
    check_words(&command, env);
    char *own = number_in("", (unsigned)getpid(), ""), *since = number_in("", started(getpid()), "");
    char *container = JOIN("alone-", own, "-", since), *token = JOIN(own, ".", since), *server;
    push(&words, record.place);
    push(&words, container);
    push(&words, token);
    push(&words, own);
    push(&words, known.image);
    if (serve(&served, &words, *known.verify) && announce(&served, &known) &&
        built(&served, &known, &record, spaces) && (server = server_of(&served)) &&
        published(&record, directory, container, token, server)) {
        close(served.helper);
        close(served.server);
        close(directory);
        enter(&record, spaces);
        arrive(&command, request, &record, env);
        execute(&command);
    }
    start.notes = false;
    /* Python says what is wrong, if it still is; an empty file tells it not to note this again. */
    if (ftruncate(record.fd, 0))
        unlinkat(directory, JOIN(file, "." RECORD_FORMAT), 0);
}
