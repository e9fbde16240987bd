/* udi-run: join the node's container, or hand over to Python. */
#include "joiner.h"
#include "tables.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PATIENCE = 20 }; /* times, a millisecond apart, that a member on its way in is waited for */

extern char **environ;

/* No file of ours may be taken for a standard one that was closed. Closed again on exec. */
static void occupy(void)
{
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            open("/dev/null", O_RDWR | O_CLOEXEC);
}

static bool has_capabilities(void)
{
    struct {
        uint32_t version;
        int pid;
    } header = {0x20080522, 0}; /* capget(2), version 3 */
    struct {
        uint32_t effective, permitted, inheritable;
    } data[2] = {{0, 0, 0}, {0, 0, 0}};
    return syscall(SYS_capget, &header, data) == 0 && (data[0].permitted || data[1].permitted);
}

/* Before anything else is done: what is executed from here on is found by the caller's PATH. */
static void refuse_privilege(void)
{
    const char *name = start.shifter ? "shifter" : "udi-run";
    if (getuid() != geteuid() || getgid() != getegid())
        fail(125, JOIN(name, " is setuid or setgid, and refuses to run so"),
             "it needs no privilege: chmod ug-s it");
    if (getauxval(AT_SECURE) && has_capabilities())
        fail(125, JOIN(name, " has file capabilities, and refuses to run so"),
             "it needs no privilege: setcap -r it");
    if (getuid() == 0 || getgid() == 0)
        hand_over();
}

/* Join where there is something to join; returns where not. */
static void try_to_join(const struct request *request, const struct list *env, int directory,
                        const struct text *name, const struct text *key)
{
    struct timespec millisecond = {0, 1000000};
    struct record record;
    int spaces[2];
    for (int i = 0; i < PATIENCE; i++) {
        if (!record_read(directory, name->at, &record))
            return;
        if (!record_fits(&record, key))
            break;
        if (find_spaces(&record, spaces)) {
            struct command command = {{0}, {0}, {0}};
            prepare(&command, request, &record, env);
            check_words(&command, env);
            release();
            close(directory);
            enter(&record, spaces);
            arrive(&command, request, &record, env);
            execute(&command);
        }
        /* Only who has the lock waits: he would build. */
        if (start.directory < 0 || !record_entering(&record))
            break;
        close(record.fd);
        nanosleep(&millisecond, NULL);
    }
    close(record.fd);
}

static void show(const struct request *request, const struct list *env, int directory,
                 const struct text *name, const struct text *key)
{
    struct record record;
    struct command command = {{0}, {0}, {0}};
    if (directory < 0 || !record_read(directory, name->at, &record) || !record_fits(&record, key))
        print_plan(NULL, name, key);
    prepare(&command, request, &record, env);
    print_plan(&command, name, key);
}

/* Another place may have been made meanwhile: then the locks of both are needed. */
static bool is_only_place(const struct list *env, int directory)
{
    struct stat one, two;
    bool alone;
    int other = place_find(env, false, &alone);
    bool same = other >= 0 && fstat(other, &one) == 0 && fstat(directory, &two) == 0 &&
                one.st_dev == two.st_dev && one.st_ino == two.st_ino;
    if (other >= 0)
        close(other);
    return same && alone;
}

static void join_or_elect(const struct request *request, const struct list *env,
                          const struct text *name, const struct text *key, bool build)
{
    bool shown = strcmp(get_or(env, "UDI_JOIN_PLAN", ""), "1") == 0, alone;
    int directory = place_find(env, build && !shown, &alone);
    if (shown)
        show(request, env, directory, name, key);
    if (directory < 0)
        return;
    try_to_join(request, env, directory, name, key);
    start.name = name->at;
    for (int builds = 0; build && alone && builds < 2; builds++) {
        release();
        elect(directory, name->at, builds);
        if (!is_only_place(env, directory)) {
            release();
            return;
        }
        try_to_join(request, env, directory, name, key);
        if (start.directory >= 0)
            return;
    }
}

int main(int argc, char **argv)
{
    struct request request = {0};
    struct list env = {0};
    struct text key = {0}, name = {0};
    start.argv = argv;
    start.environ = environ;
    occupy();
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    start.shifter = argc > 0 && strcmp(slash ? slash + 1 : argv[0], "shifter") == 0;
    refuse_privilege();
    if (!start.shifter && argc < 2)
        hand_over();
    environment_read(&env, environ);
    parse(&request, argv + 1, &env);
    const struct given *share = &request.options[O_share];
    const struct given *keep = &request.options[O_keep];
    char *who = launcher(&env, share->set ? share->value : "auto"), *kept = NULL;
    /* Without --keep the site's configuration may have kept one: that can be joined. */
    if (keep->set ? strspn(keep->value, "0") != strlen(keep->value) : !who)
        kept = keep_owner(&request, &env);
    if (kept || who) {
        container_key(&request, kept ? kept : who, &env, &key, &name);
        join_or_elect(&request, &env, &name, &key, keep->set || who);
    }
    if (!who)
        start_known(&request, &env);
    hand_over();
}
