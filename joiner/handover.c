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

struct start start = {NULL, NULL, false, false, -1, -1, NULL};

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
char *python_script(void)
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

static void flag(struct list *argv, const char *option)
{
    push(argv, "-X");
    push(argv, option);
}

/* The words that start `program` in Python, with these options (-X); its arguments may follow. */
void python_words(struct list *argv, const char *program, const struct list *options)
{
    char *path = python_script(), *beside = JOIN(folder_of(path), "python3");
    struct stat found;
    bool here = stat(beside, &found) == 0 && S_ISREG(found.st_mode);
    push(argv, here ? beside : "python3");
    push(argv, "-I");
    push(argv, "-S");
    flag(argv, "utf8=1");
    flag(argv, JOIN("program=", program));
    for (size_t i = 0; i < options->count; i++)
        flag(argv, options->at[i]);
    push(argv, "-c");
    push(argv, START);
    push(argv, path);
}

/* execv(3), or execvp(3) where no Python lies beside the script; returns for an error. */
void python_execute(const struct list *argv)
{
    strchr(argv->at[0], '/') ? execv(argv->at[0], argv->at) : execvp(argv->at[0], argv->at);
}

_Noreturn void hand_over(void)
{
    struct list argv = {0}, options = {0};
    push(&options, JOIN("ignored=", is_ignored(SIGPIPE) ? "+PIPE" : "",
                        is_ignored(SIGXFSZ) ? "+XFSZ" : ""));
    if (!is_set("LC_CTYPE=") && !is_set("LC_ALL="))
        push(&options, "lc_ctype=unset"); /* Python sets it in the C locale (PEP 538). */
    if (start.notes)
        push(&options, "known");
    if (start.directory >= 0) {
        push(&options, lock());
        keep(start.directory);
        keep(start.lock);
    }
    python_words(&argv, start.shifter ? "shifter" : "udi-run", &options);
    for (char **word = start.argv[0] ? start.argv + 1 : start.argv; *word; word++)
        push(&argv, *word);
    python_execute(&argv);
    fail(125, JOIN("executing ", argv.at[0], " failed: ", reason(errno)),
         "it needs Python 3.11 or newer, beside it or on the PATH");
}
