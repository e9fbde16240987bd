/* The command line, by the table of options that tables.h has from plan/options.py, as `parse` there
 * reads it. What `parse` refuses, explains or looks up in plan/foreign.py is handed over. */
#include "joiner.h"
#include "tables.h"

#include <string.h>

static const struct option *by_name(const char *name, size_t length)
{
    for (size_t i = 0; i < OPTION_COUNT; i++)
        if (strlen(OPTIONS[i].name) == length && memcmp(OPTIONS[i].name, name, length) == 0)
            return &OPTIONS[i];
    return NULL;
}

static const struct option *by_letter(char letter)
{
    for (size_t i = 0; i < OPTION_COUNT; i++)
        if (letter && OPTIONS[i].letter == letter)
            return &OPTIONS[i];
    return NULL;
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
    give(request, (int)(option - OPTIONS), given ? given : (char *)"");
}

/* Reads the leading options; returns what follows them. `named`: the image is known. */
static char **options(struct request *request, char **argv, bool named)
{
    char *rest_of_bundle = NULL;
    while (*argv || rest_of_bundle) {
        char *word = rest_of_bundle ? rest_of_bundle : *argv, *given = NULL;
        const struct option *option;
        if (!rest_of_bundle && (*word != '-' || !word[1]))
            break;
        if (!rest_of_bundle)
            argv++;
        rest_of_bundle = NULL;
        if (strcmp(word, "--") == 0)
            return argv;
        if (word[1] == '-') {
            char *equals = strchr(word, '=');
            size_t length = equals ? (size_t)(equals - word) - 2 : strlen(word) - 2;
            option = by_name(word + 2, length);
            given = equals ? equals + 1 : NULL;
        } else {
            option = by_letter(word[1]);
            given = word[1] && word[2] ? word + 2 : NULL;
            if (option && option->kind == FLAG && given) {
                rest_of_bundle = JOIN("-", given);
                given = NULL;
            }
        }
        if (!option)
            hand_over();
        if (!given && !rest_of_bundle && (option->kind == VALUE || option->kind == LIST)) {
            if (!*argv)
                hand_over();
            given = *argv++;
        } else if (!given && option->kind == OPTIONAL && !named && !request->options[O_image].set &&
                   argv[0] && argv[1] && is_value(option, argv[0])) {
            given = *argv++;
        }
        take(request, option, given);
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
    char **rest = start.shifter ? shifter_parse(request, argv, env) : options(request, argv, named);
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
