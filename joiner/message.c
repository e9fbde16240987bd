/* What is said: as base/process.py does, one piece a message, since ranks share standard error.
 * Only texts that `printable` has seen come here; all others are handed over before. */
#include "joiner.h"
#include "tables.h"

#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

static const char *rank = "";

/* The C libraries have words of their own for some. */
const char *reason(int number)
{
    for (size_t i = 0; REASONS[i].text; i++)
        if (REASONS[i].number == number)
            return REASONS[i].text;
    return strerror(number);
}

/* Whether a text can be shown as it is: ASCII, and none of it is cut off (a line has 8,000). */
bool printable(const char *string)
{
    size_t length = strlen(string);
    for (size_t i = 0; i < length; i++)
        if (string[i] < ' ' || string[i] > '~')
            return false;
    return length < 2000;
}

/* In a job of several ranks an error says rank and node: a hundred speak to one terminal. */
void speak_as(const struct list *env)
{
    struct utsname node;
    for (size_t i = 0; RANK_VARIABLES[i]; i++) {
        const char *number = get_or(env, RANK_VARIABLES[i], NULL);
        if (!number)
            continue;
        const char *name = get_or(env, "SLURMD_NODENAME", NULL);
        if (!name)
            name = uname(&node) ? "" : node.nodename;
        if (!printable(number) || !printable(name))
            hand_over();
        rank = JOIN(": rank ", number, " on ", name);
        return;
    }
}

static void tell(const char *who, const char *message, const char *hint)
{
    struct text text = {0};
    add(&text, JOIN(who, rank, ": ", message, "\n"));
    if (*hint)
        add(&text, JOIN(who, rank, ": hint: ", hint, "\n"));
    if (write(2, text.at, text.length) < 0)
        return; /* standard error is closed: the exit status remains */
}

void complain(const char *message, const char *hint)
{
    tell("udi-run", message, hint);
}

/* `status` is udi-run's; Shifter has others (shifter/options.py). */
_Noreturn void fail(int status, const char *message, const char *hint)
{
    static bool failing;
    if (start.shifter)
        status = status == 125 ? 1 : 127;
    if (failing)
        _exit(status); /* no memory for the words either */
    failing = true;
    tell(start.shifter ? "shifter" : "udi-run", message, hint);
    exit(status);
}
