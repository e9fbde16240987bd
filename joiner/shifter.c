/* What shifter's options and variables mean, as rootless_udi/shifter/options.py translates them. */
#include "joiner.h"
#include "tables.h"

#include <string.h>

static const char *variable(const struct list *env, const char *name)
{
    return get_or(env, JOIN("SHIFTER_", name),
                  get_or(env, JOIN("SLURM_SPANK_SHIFTER_", name), NULL));
}

/* udi-run's word for [TYPE:]IMAGE. */
static char *reference(char *text)
{
    struct text kind = {0};
    size_t length = strcspn(text, ":");
    add_bytes(&kind, text, length);
    if (!text[length] || !is_one_of(kind.at, SHIFTER_TYPES))
        return text;
    char *name = text + length + 1;
    if (strcmp(kind.at, "id") == 0) {
        name = JOIN(name + (starts(name, "sha256:") ? strlen("sha256:") : 0));
        for (char *c = name; *c; c++)
            *c = *c >= 'A' && *c <= 'F' ? (char)(*c + ('a' - 'A')) : *c;
        if (strlen(name) != 64 || name[strspn(name, "0123456789abcdef")])
            hand_over();
        return JOIN("sha256:", name);
    }
    if (!*name || (strcmp(kind.at, "local") == 0 && *name != '/'))
        hand_over();
    return strcmp(kind.at, "docker") == 0 ? text : name;
}

static void from_variables(struct request *request, const struct list *env)
{
    const char *kind = variable(env, "IMAGETYPE"), *image = variable(env, "IMAGE");
    const char *volume = variable(env, "VOLUME"), *module = variable(env, "MODULE");
    image = kind && image ? JOIN(kind, ":", image) : variable(env, "IMAGEREQUEST");
    if (!request->options[O_image].set && image)
        give(request, O_image, (char *)image);
    else if (!request->options[O_image].set && !get_or(env, "UDI_IMAGE", NULL))
        hand_over();
    if (request->options[O_image].set)
        request->options[O_image].value = reference(request->options[O_image].value);
    if (!request->options[O_volume].set && volume)
        give(request, O_volume, (char *)volume);
    if (!request->options[O_module].set && module)
        give(request, O_module, (char *)module);
}

/* Returns the command: `rest` is what follows the options. */
char **shifter_command(struct request *request, char **rest, const struct list *env)
{
    static char *bare[] = {SHELL, NULL};
    static char *shell[] = {SHELL, "-c", "[ -x \"$0\" ] && exec \"$0\"; exec " SHELL, NULL, NULL};
    const struct list *own = &request->options[O_env].values;
    from_variables(request, env);
    give(request, O_shifter, (char *)"");
    for (size_t i = 0; i < own->count; i++) {
        const char *equals = strchr(own->at[i], '=');
        if (!equals || !equals[1])
            hand_over(); /* both have to be there */
    }
    /* The shell of a bare `shifter`. */
    if (!*rest && !request->options[O_entrypoint].set) {
        shell[3] = (char *)get_or(env, "SHELL", "");
        rest = *shell[3] == '/' && strcmp(shell[3], SHELL) != 0 ? shell : bare;
    }
    /* A batch script is opened by Python. */
    for (char **word = rest; *word; word++)
        if (**word == '/' && ends(*word, "/slurm_script") && get_or(env, "SLURM_JOB_ID", NULL))
            hand_over();
    return rest;
}
