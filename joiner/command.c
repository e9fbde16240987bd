/* What a rank becomes: the first half of launch/command.py, which is before the container. */
#include "joiner.h"
#include "tables.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void words(struct command *command, const struct request *request,
                  const struct record *record)
{
    const struct given *entrypoint = &request->options[O_entrypoint];
    const struct list *rest = &request->command;
    if (entrypoint->set && *entrypoint->value) {
        push(&command->argv, entrypoint->value);
    } else if (entrypoint->set) {
        if (!record->entrypoint.count)
            hand_over();
        for (size_t i = 0; i < record->entrypoint.count; i++)
            push(&command->argv, record->entrypoint.at[i]);
        if (!rest->count)
            rest = &record->cmd;
    } else if (!rest->count) {
        push(&command->argv, SHELL);
    }
    for (size_t i = 0; i < rest->count; i++)
        push(&command->argv, rest->at[i]);
}

static void operations(struct list *env, const struct list *list)
{
    for (size_t i = 0; i < list->count; i += 3)
        apply(env, list->at[i], list->at[i + 1], list->at[i + 2]);
}

static void variables(struct command *command, const struct request *request,
                      const struct record *record, const struct list *caller)
{
    struct list *env = &command->env, *own = &request->options[O_env].values;
    const struct list *files = &request->options[O_env_file].values;
    for (size_t i = 0; i < caller->count; i++)
        push(env, caller->at[i]);
    without_host(env, request->options[O_clearenv].set, request->options[O_shifter].set);
    operations(env, &record->before);
    for (size_t i = 0; i < files->count; i++)
        apply_file(env, files->at[i]);
    for (size_t i = 0; i < own->count; i++) {
        struct text name = {0};
        add_bytes(&name, own->at[i], strcspn(own->at[i], "="));
        set(env, name.at, own->at[i] + name.length + 1);
    }
    operations(env, &record->after);
    if (!get(env, "PATH"))
        set(env, "PATH", DEFAULT_PATH);
    if (get(env, "NVIDIA_VISIBLE_DEVICES") || get(caller, "NVIDIA_VISIBLE_DEVICES"))
        select_gpus(caller, env);
}

/* The working directory's names: by $PWD where that is it, and the physical one. */
void current_names(struct list *names, const struct list *caller)
{
    struct stat here, there;
    const char *real = getcwd(NULL, 0), *logical = get_or(caller, "PWD", "");
    if (real && *logical == '/' && strcmp(real, logical) != 0 && stat(logical, &there) == 0 &&
        stat(real, &here) == 0 && here.st_dev == there.st_dev && here.st_ino == there.st_ino)
        push(names, logical);
    push(names, real ? real : "/");
}

static void folders(struct command *command, const struct request *request,
                    const struct record *record, const struct list *caller)
{
    const struct given *workdir = &request->options[O_workdir];
    const char *image = record->workdir ? record->workdir : "";
    if (workdir->set) {
        if (!*workdir->value && !*image)
            hand_over();
        push(&command->cwd, *workdir->value ? workdir->value : image);
        return;
    }
    current_names(&command->cwd, caller);
}

/* What may have to be said once there is no way back; the rest of it is words of ours. */
void check_words(const struct command *command, const struct list *env)
{
    bool good = printable(command->argv.at[0]) && printable(get(&command->env, "PATH")) &&
                printable(get_or(&command->env, "UDI_IMAGE", ""));
    for (size_t i = 0; i < command->cwd.count; i++)
        good = good && printable(command->cwd.at[i]);
    if (!good)
        hand_over();
    speak_as(env);
}

void prepare(struct command *command, const struct request *request, const struct record *record,
             const struct list *caller)
{
    words(command, request, record);
    variables(command, request, record, caller);
    folders(command, request, record, caller);
}

/* A field of a record, or of what tests compare. */
void add_field(struct text *text, const char *name, const char *value, size_t length)
{
    add_number(text, strlen(name) + 1 + length);
    add(text, ":");
    add(text, name);
    add(text, "=");
    add_bytes(text, value, length);
    add(text, "\n");
}

static void lines(struct text *text, const char *name, const struct list *list)
{
    for (size_t i = 0; i < list->count; i++)
        add_field(text, name, list->at[i], strlen(list->at[i]));
}

/* UDI_JOIN_PLAN=1: as launch/joinplan.py. `command` is NULL where there is nothing to join. */
void print_plan(const struct command *command, const struct text *name, const struct text *key)
{
    struct text text = {0};
    add_field(&text, "by", "c", 1);
    add_field(&text, "name", name->at, name->length);
    add_field(&text, "request", key->at, key->length);
    add_field(&text, "state", command ? "join" : "none", 4);
    if (command) {
        lines(&text, "argv", &command->argv);
        lines(&text, "env", &command->env);
        lines(&text, "cwd", &command->cwd);
    }
    for (size_t at = 0; at < text.length;) {
        ssize_t done = write(1, text.at + at, text.length - at);
        if (done < 0)
            exit(125);
        at += (size_t)done;
    }
    exit(0);
}
