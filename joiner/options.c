/* The command line, by the tables that tables.h has from plan/options.py and shifter/options.py, as
 * `parse` there reads it. What that refuses, explains or looks up in plan/foreign.py is handed over.
 */
#include "joiner.h"
#include "tables.h"

#include <string.h>

/* Shifter's options may be cut short, where only one of that beginning is meant. */
static const struct option *by_name(const char *name, size_t length)
{
    const struct option *found = NULL;
    bool ambiguous = false;
    for (const struct option *one = start.shifter ? SHIFTER : OPTIONS; one->name; one++) {
        if (!length || strncmp(one->name, name, length) != 0)
            continue;
        if (!one->name[length])
            return one;
        ambiguous = ambiguous || !start.shifter || (found && found->field != one->field);
        found = one;
    }
    return ambiguous ? NULL : found;
}

static const struct option *by_letter(char letter)
{
    const struct option *one = start.shifter ? SHIFTER : OPTIONS;
    while (one->name && one->letter != letter)
        one++;
    return one->name ? one : NULL;
}

bool is_image(const char *word)
{
    bool found = false;
    for (size_t i = 0; FILE_SUFFIXES[i]; i++)
        found = found || ends(word, FILE_SUFFIXES[i]);
    return found;
}

/* Whether the word after a bare option is its value, and not the image. Forms of a value: "/" is any
 * path, "?" any word without signs, "x:" a word that begins so, others themselves. */
static bool is_value(const struct option *option, const char *word)
{
    for (const char *const *form = option->next; *form; form++) {
        if (strcmp(*form, "/") == 0) {
            if (*word == '/' && !is_image(word))
                return true;
        } else if (strcmp(*form, "?") == 0) {
            if (*word != '-' && !strpbrk(word, "/:@."))
                hand_over();
        } else if (strcmp(word, *form) == 0 || (ends(*form, ":") && starts(word, *form))) {
            return true;
        }
    }
    return false;
}

/* Take an option with its value; a list has all. */
void give(struct request *request, int option, char *value)
{
    struct given *one = &request->options[option];
    one->set = true;
    one->value = value;
    if (OPTIONS[option].kind == LIST)
        push(&one->values, value);
}

static void take(struct request *request, const struct option *option, char *given)
{
    if (option->kind == FLAG ? given != NULL : option->kind != OPTIONAL && (!given || !*given))
        hand_over();
    if (option->choices[0] && !is_one_of(given ? given : "", option->choices))
        hand_over();
    if (option->field == OPTION_COUNT)
        return; /* of Shifter, and means nothing */
    if (start.shifter && option->field == O_env_file)
        request->options[O_env_file].values.count = 0; /* the last one counts */
    give(request, option->field, given ? given : (char *)"");
}

/* Takes an option with its value: `given`, the next word, or none; returns what follows. */
static char **valued(struct request *request, const struct option *option, char *given, char **argv,
                     bool named)
{
    if (!option)
        hand_over();
    bool needed = option->kind == VALUE || option->kind == LIST;
    bool maybe = option->kind == OPTIONAL && !start.shifter && !named &&
                 !request->options[O_image].set && argv[0] && argv[1];
    if (!given && *argv && (needed || (maybe && is_value(option, *argv))))
        given = *argv++;
    take(request, option, given);
    return argv;
}

/* Reads the leading options; returns what follows them. `named`: the image is known. */
static char **options(struct request *request, char **argv, bool named)
{
    while (*argv && **argv == '-' && (*argv)[1]) {
        char *word = *argv++, *equals = strchr(word, '='), *given;
        if (strcmp(word, "--") == 0)
            break;
        if (word[1] == '-') {
            size_t length = equals ? (size_t)(equals - word) - 2 : strlen(word) - 2;
            given = equals ? equals + 1 : NULL;
            argv = valued(request, by_name(word + 2, length), given, argv, named);
            continue;
        }
        for (char *letter = word + 1; letter && *letter;) {
            const struct option *option = by_letter(*letter++);
            bool flag = option && option->kind == FLAG;
            argv = valued(request, option, flag || !*letter ? NULL : letter, argv, named);
            letter = flag ? letter : NULL;
        }
    }
    return argv;
}

static void from_variables(struct request *request, const struct list *env)
{
    for (size_t i = 0; VARIABLES[i].name; i++) {
        const char *text = get_or(env, VARIABLES[i].name, NULL);
        if (text && !request->options[VARIABLES[i].option].set)
            give(request, VARIABLES[i].option, (char *)text);
    }
}

void parse(struct request *request, char **argv, const struct list *env)
{
    static const int for_python[] = {O_explain, O_help, O_version, O_edf};
    request->options = memory(OPTION_COUNT * sizeof *request->options);
    bool named = get_or(env, "UDI_IMAGE", NULL) != NULL;
    if (get_or(env, "UDI_EDF", NULL))
        hand_over();
    char **rest = options(request, argv, named);
    if (start.shifter)
        rest = shifter_command(request, rest, env);
    if (*rest && !named && !request->options[O_image].set &&
        strstr(COMMANDS, JOIN(" ", *rest, " ")))
        hand_over();
    for (size_t i = 0; i < sizeof for_python / sizeof *for_python; i++)
        if (request->options[for_python[i]].set)
            hand_over();
    from_variables(request, env);
    check_keep(request);
    struct given *image = &request->options[O_image];
    if (!image->set) {
        if (!*rest || !**rest)
            hand_over();
        image->set = true;
        image->value = *rest++;
        if (*rest && strcmp(*rest, "--") == 0)
            rest++;
    }
    request->image = image->value;
    for (; *rest; rest++)
        push(&request->command, *rest);
    if (!request->command.count && !request->options[O_entrypoint].set && ends(image->value, SIF))
        hand_over();
    struct list *own = &request->options[O_env].values;
    for (size_t i = 0; i < own->count; i++)
        if (*own->at[i] == '=' || !strchr(own->at[i], '='))
            hand_over();
}
