/* Become the Python program, with the command line, the environment, the signals and the
 * descriptors of the caller; as the lines of sh at the head of bin/udi-run do. */
#include "joiner.h"
#include "tables.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <unistd.h>

struct start start = {NULL, NULL, false, -1, -1, NULL};

static const char SCRIPT[] = "udi-run-python";

/* The folder of a path, with the slash at its end. */
static char *folder_of(const char *path)
{
    struct text text = {0};
    const char *slash = strrchr(path, '/');
    add(&text, "");
    add_bytes(&text, path, slash ? (size_t)(slash - path) + 1 : 0);
    return text.at;
}

/* The Python program lies beside this one; in a checkout by a link, and it looks around itself. */
static char *script(void)
{
    char *me = realpath("/proc/self/exe", NULL);
    if (!me)
        me = realpath((const char *)getauxval(AT_EXECFN), NULL);
    if (!me)
        fail(125, "its own place can't be found", "is /proc mounted?");
    char *path = JOIN(folder_of(me), SCRIPT), *real = realpath(path, NULL);
    if (!real)
        fail(125, JOIN("its other half is gone: ", path, ": ", reason(errno)), "install it again");
    return real;
}

static bool is_ignored(int number)
{
    struct sigaction found;
    return sigaction(number, NULL, &found) == 0 && found.sa_handler == SIG_IGN;
}

static bool is_set(const char *name)
{
    for (char **one = start.environ; *one; one++)
        if (starts(*one, name))
            return true;
    return false;
}

static void keep(int fd)
{
    if (fd >= 0)
        fcntl(fd, F_SETFD, 0);
}

static char *lock(void)
{
    struct text text = {0};
    add(&text, "lock=");
    add_number(&text, (unsigned)start.directory);
    add(&text, ".");
    if (start.lock < 0)
        add(&text, "-1");
    else
        add_number(&text, (unsigned)start.lock);
    return JOIN(text.at, ".", start.name);
}

_Noreturn void hand_over(void)
{
    char *path = script(), *beside = JOIN(folder_of(path), "python3");
    struct stat found;
    bool here = stat(beside, &found) == 0 && S_ISREG(found.st_mode);
    struct list argv = {0};
    const char *const words[] = {here ? beside : "python3", "-I", "-S", "-X", "utf8=1", "-X",
                                 start.shifter ? "program=shifter" : "program=udi-run", "-X"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        push(&argv, words[i]);
    push(&argv, JOIN("ignored=", is_ignored(SIGPIPE) ? "+PIPE" : "",
                     is_ignored(SIGXFSZ) ? "+XFSZ" : ""));
    if (!is_set("LC_CTYPE=") && !is_set("LC_ALL=")) {
        /* Python sets it in the C locale (PEP 538). */
        push(&argv, "-X");
        push(&argv, "lc_ctype=unset");
    }
    if (start.directory >= 0) {
        push(&argv, "-X");
        push(&argv, lock());
        keep(start.directory);
        keep(start.lock);
    }
    push(&argv, "-c");
    push(&argv, START);
    push(&argv, path);
    for (char **word = start.argv[0] ? start.argv + 1 : start.argv; *word; word++)
        push(&argv, *word);
    here ? execv(beside, argv.at) : execvp("python3", argv.at);
    fail(125, JOIN("executing ", argv.at[0], " failed: ", reason(errno)),
         "it needs Python 3.11 or newer, beside it or on the PATH");
}
