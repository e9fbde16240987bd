/* shifter's command line and variables, which rootless_udi/shifter/options.py translates. */
#include "joiner.h"
#include "tables.h"

#include <string.h>

typedef const struct shifter row;

static row *by_name(const char *name, size_t length)
{
    row *found = NULL;
    bool ambiguous = false;
    for (row *one = SHIFTER; one->name; one++) {
        if (!length || strncmp(one->name, name, length) != 0)
            continue;
        if (!one->name[length])
            return one;
        ambiguous = ambiguous || (found && found->option != one->option);
        found = one;
    }
    return ambiguous ? NULL : found;
}

static row *by_letter(char letter)
{
    row *one = SHIFTER;
    while (one->name && one->letter != letter)
        one++;
    return one->name ? one : NULL;
}

static char **take(struct request *request, row *option, char *given, char **argv)
{
    if (!option || (option->kind == FLAG && given) || (option->kind == VALUE && !given && !*argv))
        hand_over();
    if (option->kind == VALUE && !given)
        given = *argv++;
    if (option->kind == VALUE && !*given)
        hand_over();
    if (option->option == OPTION_COUNT)
        return argv; /* it means nothing */
    struct given *one = &request->options[option->option];
    if (option->option == O_env_file)
        one->values.count = 0; /* the last one counts */
    give(request, option->option, given ? given : (char *)"");
    return argv;
}

static char **options(struct request *request, char **argv)
{
    while (*argv && **argv == '-' && (*argv)[1]) {
        char *word = *argv++, *equals = strchr(word, '=');
        if (strcmp(word, "--") == 0)
            break;
        if (word[1] == '-') {
            size_t length = equals ? (size_t)(equals - word) - 2 : strlen(word) - 2;
            argv = take(request, by_name(word + 2, length), equals ? equals + 1 : NULL, argv);
            continue;
        }
        for (char *letter = word + 1; *letter;) {
            row *option = by_letter(*letter++);
            bool rest = option && option->kind != FLAG && *letter;
            argv = take(request, option, rest ? letter : NULL, argv);
            if (option->kind != FLAG)
                break;
        }
    }
    return argv;
}

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

/* Reads the command line; returns the command. */
char **shifter_parse(struct request *request, char **argv, const struct list *env)
{
    static char *bare[] = {SHELL, NULL};
    static char *shell[] = {SHELL, "-c", "[ -x \"$0\" ] && exec \"$0\"; exec " SHELL, NULL, NULL};
    char **rest = options(request, argv);
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
