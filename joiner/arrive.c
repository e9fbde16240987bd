/* The last step, inside the container: the folder, and execve(2); launch/command.py. */
#include "joiner.h"
#include "tables.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void outside(const struct request *request, const char *folder, const struct list *caller)
{
    const char *home = get(caller, "HOME");
    if (request->options[O_shifter].set)
        complain(JOIN("Failed to switch to working dir: ", folder, ", staying in /"), "");
    else
        complain(JOIN("the folder ", folder, " is not in the container; starting in /"),
                 home && strcmp(folder, home) == 0
                     ? "--home brings it in, --workdir=DIR starts elsewhere, --quiet says nothing"
                     : "--volume=$PWD brings it in, --workdir=DIR starts elsewhere, --quiet says "
                       "nothing");
}

void arrive(struct command *command, const struct request *request, const struct record *record,
            const struct list *caller)
{
    const struct given *workdir = &request->options[O_workdir];
    const char *folder = "/", *const *name = (const char *const *)command->cwd.at;
    int why = 0;
    while (*name && chdir(*name)) {
        why = errno;
        name++;
    }
    if (*name) {
        folder = *name;
    } else if (workdir->set && !request->options[O_shifter].set) {
        fail(125,
             JOIN(*workdir->value ? "--workdir=" : "--workdir: ", command->cwd.at[0],
                  " can't be entered in the container: ", reason(why)),
             "a folder of the host comes in by --volume=DIR");
    } else if (strcmp(command->cwd.at[0], "/") != 0 && !request->options[O_quiet].set &&
               !request->options[O_no_cwd].set && first_to_tell(record)) {
        outside(request, command->cwd.at[0], caller);
    }
    if (get(&command->env, "PWD"))
        set(&command->env, "PWD", folder);
}

static bool is_file(const char *path)
{
    struct stat found;
    return stat(path, &found) == 0 && S_ISREG(found.st_mode);
}

/* execve(2), with a shell for a script without "#!"; returns errno. */
static int tried(const char *path, const struct command *command)
{
    execve(path, command->argv.at, command->env.at);
    if (errno != ENOEXEC)
        return errno;
    struct list script = {0};
    push(&script, SHELL);
    push(&script, path);
    for (size_t i = 1; i < command->argv.count; i++)
        push(&script, command->argv.at[i]);
    execve(SHELL, script.at, command->env.at);
    return errno;
}

static _Noreturn void refused(const struct command *command, int why)
{
    const char *name = command->argv.at[0], *image = get_or(&command->env, "UDI_IMAGE", NULL);
    if (why == 0)
        fail(127,
             strchr(name, '/') ? JOIN(name, ": not found")
                               : JOIN(name, ": not found on the container's PATH (",
                                      get(&command->env, "PATH"), ")"),
             image ? JOIN("UDI_IMAGE is set to ", image,
                          ", so the first word is the command; another image is --image=IMAGE")
                   : "");
    if (why == ENOENT)
        fail(127, JOIN(name, ": its interpreter or dynamic loader is not in the image"),
             "a program of the host? what it needs is not inside");
    if (why == EACCES || why == ENOEXEC || why == EISDIR || why == ELOOP || why == ENAMETOOLONG)
        fail(126, JOIN(name, ": not executable: ", reason(why)), "");
    if (why == E2BIG)
        fail(125, JOIN(name, ": the arguments and the environment are too long"), "");
    fail(125, JOIN("executing ", name, " failed: ", reason(why)),
         why == EIO || why == ENOTCONN || why == ECONNABORTED
             ? "the image is damaged, or its server has ended (see `udi ps`): pull it anew"
             : "");
}

_Noreturn void execute(struct command *command)
{
    const char *name = command->argv.at[0], *folders = get(&command->env, "PATH");
    int why = 0;
    if (!*name)
        fail(127, "the command is an empty word", "");
    for (bool more = true; more && (why == 0 || why == EACCES);) {
        const char *path = name;
        struct text folder = {0};
        size_t length = strcspn(folders, ":");
        more = !strchr(name, '/');
        if (more) {
            add_bytes(&folder, folders, length);
            path = JOIN(length ? folder.at : ".", "/", name);
            more = folders[length] == ':';
            folders += length + (more ? 1 : 0);
        }
        int found = tried(path, command);
        if ((found != ENOENT && found != ENOTDIR) || is_file(path))
            why = found;
    }
    refused(command, why);
}
